"""The page of the study of doubtful images: how many are listed, and what the trainings gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from flawline.benchmarks.studies.doubtful.measure import (
    ALL_IMAGES,
    NOT_CONFIRMED,
    NOT_LISTED,
    NOT_MOVED,
)
from flawline.benchmarks.studies.results import column, read_rows, rows_with, stated
from flawline.benchmarks.tables import markdown_table
from flawline.runtime.json_shapes import Shape
from flawline.train.doubtful.support import LIMIT, TUNED_ON

Row = Mapping[str, Any]
LIST_HEADER = (
    "data",
    "seeds",
    "defective of training images",
    "of them listed",
    "mean",
    "of the good ones listed",
    "mean",
)
TRAINING_HEADER = ("detector", "data", "trained on", "I-AUROC", "false alarms", "found defects")
COMMON: Shape = {
    **dict.fromkeys(("what", "data", "backbone", "weights", "test_images", "command"), str),
    "share": float,
    "seed": int,
}
LIST: Shape = {
    **COMMON,
    **dict.fromkeys(("moved", "training_images", "found", "listed"), int),
}
TRAINING: Shape = {
    **COMMON,
    **dict.fromkeys(("kind", "method", "engine", "input"), str),
    **dict.fromkeys(("image_auroc", "false_alarm_rate", "recall"), float),
    **dict.fromkeys(("good_images", "defective_images"), int),
}
# What tells two rows apart.
KEYS = ("what", "data", "share", "weights", "seed", "method", "kind")
# In the order of the page.
KINDS = (NOT_MOVED, ALL_IMAGES, NOT_LISTED, NOT_CONFIRMED)


def read_row_files(out: Path) -> list[dict[str, Any]]:
    """Return the rows of an earlier run. Raises StudyError for a file of another study."""
    return read_rows(out, (LIST, TRAINING))


def add_row(rows: Sequence[Row], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows with one more, which replaces that of the same measurement."""
    kept = [dict(other) for other in rows if _key(other) != _key(row)]
    return sorted([*kept, row], key=_key)


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(row.get(key, "")) for key in KEYS)


def page_of(rows: Sequence[Row]) -> str:
    """Return the page in Markdown."""
    lists = rows_with(rows, "what", "list")
    trainings = rows_with(rows, "what", "training")
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in lists:
        key = (row["data"], str(row["share"]), row["weights"], row["command"])
        groups.setdefault(key, []).append(row)
    parts = [markdown_table(LIST_HEADER, [_list_cells(group) for group in groups.values()])]
    parts.append(
        f"Defective test images, drawn at random, are among the training images; listed is what "
        f"lies more than {LIMIT:g} robust standard deviations above the median. The constants were "
        f"chosen on {TUNED_ON}. Features of {stated(lists, _weights, _data)}."
    )
    if trainings:
        ordered = sorted(trainings, key=_training_order)
        parts.append(markdown_table(TRAINING_HEADER, [_training_cells(row) for row in ordered]))
        parts.append(
            f"Seed {stated(trainings, _seed, _data)}, tested on "
            f"{stated(trainings, _tested, _data)}, of which none is among the training images of "
            f'any row; a fifth of the training images sets the threshold. "{NOT_LISTED}" leaves '
            f'out the whole list, "{NOT_CONFIRMED}" what a person finds defective in it. Input '
            f"{stated(trainings, _input, _data)}. Engine {stated(trainings, _engine, _data)}."
        )
    parts.append(" ".join(f"`{command}`" for command in dict.fromkeys(column(rows, "command"))))
    return "\n\n".join(parts)


def _list_cells(rows: Sequence[Row]) -> list[object]:
    rows = sorted(rows, key=lambda row: int(row["seed"]))
    first = rows[0]
    found = [row["found"] for row in rows]
    good = [row["listed"] - row["found"] for row in rows]
    of_good = first["training_images"] - first["moved"]
    return [
        first["data"],
        _seeds(rows),
        f"{first['moved']} of {first['training_images']} ({first['share']:.0%})",
        ", ".join(map(str, found)),
        f"{mean(found) / first['moved']:.0%}" if first["moved"] else "–",
        f"{', '.join(map(str, good))} of {of_good}",
        f"{mean(good) / of_good:.1%}",
    ]


def _seeds(rows: Sequence[Row]) -> str:
    """Return the seeds of the choice of images; a choice of none has no seed."""
    if not rows[0]["moved"]:
        return "–"
    seeds = column(rows, "seed")
    if seeds == list(range(seeds[0], seeds[-1] + 1)) and len(seeds) > 2:
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def _training_order(row: Row) -> tuple[str, str, int]:
    return row["method"], row["data"], KINDS.index(row["kind"])


def _training_cells(row: Row) -> list[object]:
    return [
        f"{row['method']} {row['backbone']}".strip(),
        row["data"],
        row["kind"],
        f"{row['image_auroc']:.4f}",
        f"{row['false_alarm_rate']:.1%}",
        f"{row['recall']:.1%}",
    ]


def _data(row: Row) -> str:
    return str(row["data"])


def _weights(row: Row) -> str:
    return f"{row['backbone']}, {row['weights']}"


def _seed(row: Row) -> str:
    return str(row["seed"])


def _tested(row: Row) -> str:
    return f"{row['good_images']} good and {row['defective_images']} defective images"


def _input(row: Row) -> str:
    return str(row["input"])


def _engine(row: Row) -> str:
    return str(row["engine"])
