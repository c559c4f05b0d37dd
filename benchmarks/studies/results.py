"""Results of a study: its rows as JSON, and a page of Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flawline import FlawlineError

Row = TypeVar("Row", bound=Mapping[str, Any])


class StudyError(FlawlineError):
    """The results of an earlier run cannot be continued."""


def column(rows: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """Return one value of every row."""
    return [row[key] for row in rows]


def rows_with(rows: Sequence[Row], key: str, value: object) -> list[Row]:
    """Return the rows in which a key has this value."""
    return [row for row in rows if row[key] == value]


def read_rows(stem: Path) -> list[dict[str, Any]]:
    """Return the rows of STEM.json, written by `write_rows`; none if there is no such file.

    Raises StudyError for a damaged file, and OSError for one that cannot be read.
    """
    path = stem.with_name(f"{stem.name}.json")
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"{path} is damaged ({error}); delete it or give another --out") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise StudyError(f"{path} holds no list of rows; delete it or give another --out")
    return rows


def write_results(stem: Path, content: object, page: str) -> None:
    """Write STEM.json and STEM.md, and the folder they are in where it is missing."""
    write_rows(stem, content)
    stem.with_name(f"{stem.name}.md").write_text(page.rstrip("\n") + "\n", encoding="utf-8")


def write_rows(stem: Path, content: object) -> None:
    """Write STEM.json alone, so that the rows of a long run are safe before its end."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    # Not with_suffix: a name may have a dot of its own.
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(content, indent=2) + "\n")
