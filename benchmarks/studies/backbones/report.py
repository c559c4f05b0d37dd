"""The report of the backbones study."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from flawline.benchmarks.studies.backbones.measure import SIZE
from flawline.benchmarks.studies.results import column, rows_with, stated
from flawline.benchmarks.tables import markdown_table, mean_and_deviation

Row = Mapping[str, Any]


def backbones_report(rows: Sequence[Row], command: str) -> str:
    """Return the page in Markdown: one line per detector and weights, one column per data set."""
    names = list(dict.fromkeys(column(rows, "data")))
    groups = _groups(names)
    by_line: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_line[row["method"], row["weights"]].append(row)
    lines = []
    for (detector, weights), rows_of_line in by_line.items():
        lines.append(
            [
                detector,
                # The hash is in the notes below the table.
                weights.split(" sha256")[0],
                _seeds(rows_of_line),
                *_cells(rows_of_line, names, groups),
            ]
        )
    table = markdown_table(["scoring", "weights", "seeds", *names, *groups], lines)
    return f"{table}\n\n{_notes(rows)} `{command}`"


def _groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Data sets whose mean has a column of its own: two or more of the demo, or of real images."""
    demo = []
    real = []
    for name in names:
        if name.startswith("demo "):
            demo.append(name)
        else:
            real.append(name)
    groups = {}
    if len(demo) > 1:
        groups["demo mean"] = demo
    if len(real) > 1:
        groups["real mean"] = real
    return groups


def _seeds(rows: Sequence[Row]) -> str:
    seeds = sorted(set(column(rows, "seed")))
    return " ".join(map(str, seeds))


def _cells(
    rows: Sequence[Row], names: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> list[str | None]:
    """Mean and deviation of each data set, then the mean of each group that is complete."""
    cells: list[str | None] = []
    means = {}
    for name in names:
        aurocs = column(rows_with(rows, "data", name), "image_auroc")
        cells.append(mean_and_deviation(aurocs))
        if aurocs:
            means[name] = statistics.mean(aurocs)
    for members in groups.values():
        if means.keys() >= set(members):
            mean = statistics.mean(means[name] for name in members)
            cells.append(f"{mean:.4f}")
        else:
            cells.append(None)
    return cells


def _notes(rows: Sequence[Row]) -> str:
    sizes = {}
    budgets = []
    weights = []
    for row in rows:
        sizes[row["data"]] = f"{row['data']} {row['good_images']}/{row['test_images']}"
        budgets.append(f"{row['method']} {row['budget']}")
        weights.append(row["weights"])
    return (
        f"Image AUROC, mean ± standard deviation over seeds; {rows[0]['backbone']}, "
        f"{SIZE}x{SIZE}, last epoch. Good/test images: {', '.join(sizes.values())}. "
        f"Budget: {', '.join(dict.fromkeys(budgets))}. "
        f"Weights: {'; '.join(dict.fromkeys(weights))}. {stated(rows, _torch, _name)}, CPU."
    )


def _torch(row: Row) -> str:
    return f"torch {row['torch']}"


def _name(row: Row) -> str:
    return f"{row['method']} {row['data']} seed {row['seed']}"
