"""The report of a sweep: figure, page and Markdown, from nothing but the files of its folder."""
