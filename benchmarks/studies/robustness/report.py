"""The page of the robustness study: one table for each bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flawline.benchmarks.perturbations import PERTURBATIONS
from flawline.benchmarks.robustness import NONE
from flawline.benchmarks.studies.results import column
from flawline.benchmarks.tables import markdown_table
from flawline.runtime.threshold import CONFIDENCE

Row = Mapping[str, Any]
HEADER = ("change", "strength", "I-AUROC", "false alarms", "interval", "found defects")


# What tells two measurements apart.
MEASUREMENT = ("bundle", "data", "engine", "precision")


def replace_rows(
    rows: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the rows with those of one measurement, which replace earlier ones of the same."""
    kept = [row for row in rows if _measurement(row) != _measurement(new[0])]
    return [*kept, *new]


def _measurement(row: Row) -> tuple[str, ...]:
    return tuple(row[key] for key in MEASUREMENT)


def robustness_page(rows: Sequence[Row]) -> str:
    """Return the page in Markdown: a table of each measurement, and what a strength means.

    The rows have the command that measured them.
    """
    parts = []
    for measurement in dict.fromkeys(_measurement(row) for row in rows):
        of_bundle = [row for row in rows if _measurement(row) == measurement]
        table = markdown_table(HEADER, [_cells(row) for row in of_bundle])
        parts.append(f"{_title(of_bundle[0])}\n\n{table}")
    measured = set(column(rows, "perturbation"))
    meanings = []
    for name, perturbation in PERTURBATIONS.items():
        if name in measured:
            meanings.append(f"{name}: {perturbation.meaning}")
    commands = " ".join(f"`{command}`" for command in dict.fromkeys(column(rows, "command")))
    parts.append(
        f"The threshold is always the bundle's, from held-out good images without change. The "
        f"interval is that of the true rate of false alarms with {CONFIDENCE:.0%} confidence. "
        f"Strengths: {'; '.join(meanings)}. Values are changed as they are stored, and clipped. "
        f"{commands}"
    )
    return "\n\n".join(parts)


def _title(row: Row) -> str:
    network = row["method"]
    if row["backbone"]:
        network = f"{network}, {row['backbone']}, weights {row['weights']}"
    return (
        f"{row['data']}, {row['images']} test images; {network}, seed {row['train_seed']}; "
        f"{row['engine']}; stated rate of false alarms {row['asked_rate']:.1%}"
    )


def _cells(row: Row) -> list[object]:
    low, high = row["false_alarm_interval"]
    strength = "" if row["perturbation"] == NONE else f"{row['strength']:g}"
    return [
        row["perturbation"],
        strength,
        f"{row['image_auroc']:.4f}",
        f"{row['false_alarm_rate']:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{row['recall']:.1%}",
    ]
