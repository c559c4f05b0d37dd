"""Results of a study: its rows as JSON, and a page of Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flawline import FlawlineError
from flawline.runtime.console import first_line
from flawline.runtime.json_shapes import Shape, misfit
from flawline.train.data import DataSet
from flawline.train.data.split import list_hash, samples_hash

Row = TypeVar("Row", bound=Mapping[str, Any])


class StudyError(FlawlineError):
    """The results of an earlier run cannot be continued."""


def column(rows: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """Return one value of every row."""
    return [row[key] for row in rows]


def rows_with(rows: Sequence[Row], key: str, value: object) -> list[Row]:
    """Return the rows in which a key has this value."""
    return [row for row in rows if row[key] == value]


def stated(rows: Sequence[Row], fact: Callable[[Row], str], name: Callable[[Row], str]) -> str:
    """State a fact of rows once if it is the same for all, else with the rows that it is of.

    Rows that were measured in several runs may differ in their engine, versions or machine.
    """
    groups: dict[str, list[str]] = {}
    for row in rows:
        names = groups.setdefault(fact(row), [])
        if name(row) not in names:
            names.append(name(row))
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in groups.items())


def differing_versions(rows: Sequence[Row], name: Callable[[Row], str]) -> list[str]:
    """Return what is stated of each package whose version is not the same for all rows."""
    versions: list[Mapping[str, str]] = column(rows, "versions")
    packages = dict.fromkeys(package for of_row in versions for package in of_row)
    texts = []
    for package in packages:
        if len({of_row.get(package) for of_row in versions}) > 1:

            def fact(row: Row, package: str = package) -> str:
                return f"{package} {row['versions'].get(package, 'absent')}"

            texts.append(stated(rows, fact, name))
    return texts


def images_identity(data_set: DataSet) -> dict[str, str]:
    """Return what rows state about their images, so that changed ones are measured again."""
    return {
        "data_sha256": list_hash(data_set.train_good),
        "test_sha256": samples_hash(data_set),
    }


def read_rows(stem: Path, shape: Shape | None = None) -> list[dict[str, Any]]:
    """Return the rows of STEM.json, written by `write_rows`; none if there is no such file.

    `shape` is that of a row, as of `runtime.json_shapes`. Raises StudyError for a damaged file and
    for rows of another shape, and OSError for a file that cannot be read.
    """
    path = stem.with_name(f"{stem.name}.json")
    if not path.exists():
        return []
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StudyError(
            f"{path} is damaged ({first_line(error)}); delete it or give another --out"
        ) from error
    reason = misfit(rows, [shape or {}])
    if reason is not None:
        raise StudyError(
            f"{path} is not a result of this study ({reason}); delete it or give another --out"
        )
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
