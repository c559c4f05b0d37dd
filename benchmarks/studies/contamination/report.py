"""The page of the contamination study: one line for each method and share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flawline.benchmarks.studies.results import column
from flawline.benchmarks.tables import markdown_table
from flawline.runtime.threshold import CONFIDENCE

Row = Mapping[str, Any]
HEADER = (
    "method",
    "data",
    "share",
    "defective of training images",
    "I-AUROC",
    "false alarms",
    "interval",
    "found defects",
    "interval",
    "PG2",
    "PB2",
)


def add_row(rows: Sequence[Row], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows with one more, which replaces that of the same method, data and share.

    Rows of the method and data whose test images are others are not comparable, and are left out.
    """
    kept = []
    for other in rows:
        same_set = (other["method"], other["data"]) == (row["method"], row["data"])
        if not same_set or (
            other["share"] != row["share"] and other["test_images"] == row["test_images"]
        ):
            kept.append(dict(other))
    return sorted([*kept, row], key=lambda each: (each["method"], each["data"], each["share"]))


def contamination_page(rows: Sequence[Row]) -> str:
    """Return the page in Markdown; the rows have the command that measured them."""
    table = markdown_table(HEADER, [_cells(row) for row in rows])
    tests = []
    for row in rows:
        text = f"{row['data']}: {row['good_images']} good and {row['defective_images']} defective"
        if text not in tests:
            tests.append(text)
    first = rows[0]
    commands = " ".join(f"`{command}`" for command in dict.fromkeys(column(rows, "command")))
    note = (
        f"Share: of the training images that are defective. The images that move are chosen at "
        f"random from the defective test images, a smaller share is part of a larger one, and none "
        f"of the largest share is tested at any share. Tested on {'; '.join(tests)}. A fifth of "
        f"the training images, the defective ones among them included, is held out to set the "
        f"threshold. Intervals with {CONFIDENCE:.0%} confidence. Weights {first['weights']}, seed "
        f"{first['seed']}, {first['engine']}. {commands}"
    )
    return f"{table}\n\n{note}"


def _cells(row: Row) -> list[object]:
    return [
        row["method"],
        row["data"],
        f"{row['share']:.0%}",
        f"{row['moved']} of {row['training_images']}",
        f"{row['image_auroc']:.4f}",
        f"{row['false_alarm_rate']:.1%}",
        _interval(row["false_alarm_interval"]),
        f"{row['recall']:.1%}",
        _interval(row["recall_interval"]),
        f"{row['pg2']:.1%}",
        f"{row['pb2']:.1%}",
    ]


def _interval(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{low:.1%} to {high:.1%}"
