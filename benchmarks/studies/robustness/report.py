"""The page of the robustness study: one table for each bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flawline.benchmarks.perturbations import PERTURBATIONS
from flawline.benchmarks.robustness import NONE
from flawline.benchmarks.studies.results import column
from flawline.benchmarks.tables import markdown_table
from flawline.runtime.json_shapes import Shape
from flawline.runtime.threshold import CONFIDENCE

Row = Mapping[str, Any]
HEADER = ("change", "I-AUROC", "false alarms", "interval", "found defects")


# Of a row; earlier versions did not write the bundle's id.
ROW: Shape = {
    **dict.fromkeys(("bundle", "method", "backbone", "data", "engine", "engine_name"), str),
    **dict.fromkeys(("precision", "perturbation", "command"), str),
    **dict.fromkeys(("strength", "image_auroc", "false_alarm_rate", "recall", "asked_rate"), float),
    "false_alarm_interval": [float],
    "images": int,
    "bundle_id?": str,
}


def replace_rows(
    rows: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the rows with those of one measurement, which replace earlier ones of the same."""
    kept = [row for row in rows if _measurement(row) != _measurement(new[0])]
    return [*kept, *new]


def _measurement(row: Row) -> tuple[str, ...]:
    """Return what tells two measurements apart: folders of bundles may have the same name."""
    bundle = row.get("bundle_id") or row["bundle"]
    return bundle, row["data"], row["engine"], row["precision"]


def measurements_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of each measurement."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(_measurement(row), []).append(row)
    return list(groups.values())


def labels_of_measurements(groups: Sequence[Sequence[Row]]) -> list[str]:
    """Return a label of each measurement: the detector, the data and the engine.

    Those that would have the same one get the name and the identity of the bundle, too.
    """
    labels = []
    for group in groups:
        row = group[0]
        network = " ".join(filter(None, (row["method"], row["backbone"])))
        labels.append(f"{network}, {row['data']}, {row['engine_name']} {row['precision']}")
    unique = []
    for label, group in zip(labels, groups, strict=True):
        if labels.count(label) > 1:
            label += f", {group[0]['bundle']} {group[0].get('bundle_id', '')}".rstrip()
        unique.append(label)
    return unique


def change_of(row: Row) -> str:
    """Return the name and the strength of a row's change."""
    if row["perturbation"] == NONE:
        return "no change"
    return f"{row['perturbation']} {row['strength']:g}"


def robustness_page(rows: Sequence[Row]) -> str:
    """Return the page in Markdown: a table of each measurement, and what a strength means.

    The rows have the command that measured them.
    """
    parts = []
    for of_bundle in measurements_of(rows):
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
    bundle = " ".join(filter(None, (row["bundle"], row.get("bundle_id"))))
    if row["backbone"]:
        network = f"{network}, {row['backbone']}, weights {row['weights']}"
    return (
        f"{row['data']}, {row['images']} test images; {network}, seed {row['train_seed']}; "
        f"{row['engine']}; stated rate of false alarms {row['asked_rate']:.1%}; bundle {bundle}"
    )


def _cells(row: Row) -> list[object]:
    low, high = row["false_alarm_interval"]
    return [
        change_of(row),
        f"{row['image_auroc']:.4f}",
        f"{row['false_alarm_rate']:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{row['recall']:.1%}",
    ]
