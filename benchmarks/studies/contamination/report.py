"""The page of the contamination study: one line for each method and share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flawline.benchmarks.studies.results import column, differing_versions, stated
from flawline.benchmarks.tables import markdown_table
from flawline.runtime.json_shapes import Shape
from flawline.runtime.threshold import CONFIDENCE

Row = Mapping[str, Any]
HEADER = (
    "detector",
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


# What tells the detectors of two rows apart.
DETECTOR = ("method", "backbone", "weights", "input", "data")
ROW: Shape = {
    **dict.fromkeys((*DETECTOR, "engine", "device", "test_images", "command"), str),
    **dict.fromkeys(("share", "image_auroc", "false_alarm_rate", "recall", "pg2", "pb2"), float),
    **dict.fromkeys(("moved", "training_images", "good_images", "defective_images", "seed"), int),
    "false_alarm_interval": [float],
    "recall_interval": [float],
    "versions": {str: str},
}


def add_row(rows: Sequence[Row], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows with one more, which replaces that of the same detector, data and share.

    Rows of the detector and data whose test images are others are not comparable, and are left out.
    """
    kept = []
    for other in rows:
        same_set = _detector(other) == _detector(row)
        if not same_set or (
            other["share"] != row["share"] and other["test_images"] == row["test_images"]
        ):
            kept.append(dict(other))
    return sorted([*kept, row], key=lambda each: (*_detector(each), each["share"]))


def _detector(row: Row) -> tuple[str, ...]:
    return tuple(row[key] for key in DETECTOR)


def contamination_page(rows: Sequence[Row]) -> str:
    """Return the page in Markdown; the rows have the command that measured them."""
    table = markdown_table(HEADER, [_cells(row) for row in rows])
    tests = stated(rows, _tested, lambda row: str(row["data"]))
    facts = [stated(rows, fact, _name) for fact in (_weights, _seed, _engine, _device)]
    facts += differing_versions(rows, _name)
    commands = " ".join(f"`{command}`" for command in dict.fromkeys(column(rows, "command")))
    note = (
        f"Share: of the training images that are defective. The images that move are chosen at "
        f"random from the defective test images, a smaller share is part of a larger one, and none "
        f"of the largest share is tested at any share. Tested on {tests}. A fifth of "
        f"the training images, the defective ones among them included, is held out to set the "
        f"threshold. Intervals with {CONFIDENCE:.0%} confidence. {'. '.join(facts)}. {commands}"
    )
    return f"{table}\n\n{note}"


def _name(row: Row) -> str:
    return f"{_network(row)} {row['data']} {row['share']:.0%}"


def _network(row: Row) -> str:
    return f"{row['method']} {row['backbone']}".strip()


def _tested(row: Row) -> str:
    return f"{row['good_images']} good and {row['defective_images']} defective images"


def _weights(row: Row) -> str:
    return f"Weights {row['weights']}, input {row['input']}"


def _seed(row: Row) -> str:
    return f"Seed {row['seed']}"


def _engine(row: Row) -> str:
    return f"Engine {row['engine']}"


def _device(row: Row) -> str:
    return f"Machine {row['device']}"


def _cells(row: Row) -> list[object]:
    return [
        _network(row),
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
