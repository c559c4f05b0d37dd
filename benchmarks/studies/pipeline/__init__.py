"""The study of the pipeline of a stream: what it costs, and what its overlap gains."""
