"""What every study writes: its rows as JSON, and a page of Markdown."""

from __future__ import annotations

import json
from pathlib import Path


def write_results(stem: Path, content: object, page: str) -> None:
    """Write STEM.json and STEM.md, and the folder they are in where it is missing."""
    write_rows(stem, content)
    stem.with_name(f"{stem.name}.md").write_text(page.rstrip("\n") + "\n")


def write_rows(stem: Path, content: object) -> None:
    """Write STEM.json alone, so that the rows of a long run are safe before its end."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(content, indent=2) + "\n")
