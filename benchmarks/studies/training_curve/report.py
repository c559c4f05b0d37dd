"""The report of the study: a table of each data set and setting."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from flawline.benchmarks.studies.results import column, rows_with
from flawline.benchmarks.studies.training_curve.measure import (
    Row,
    last_half,
    spread,
    standard_error,
)
from flawline.benchmarks.tables import markdown_table, mean_and_deviation

HEADER = [
    "data",
    "setting",
    "seeds",
    "steps",
    "I-AUROC at the end",
    "error of the test set",
    "range, last half",
    "range, last half, one step's weights",
    "CPU s",
    "PatchCore",
]


def curve_report(rows: Sequence[Row], nearest: Mapping[str, float], command: str) -> str:
    """Return the page in Markdown.

    A range is the largest AUROC minus the smallest over all seeds and all points of the last half
    of the training. `nearest` is the AUROC of PatchCore's bank on the same features, per data set.
    """
    lines: list[list[object]] = []
    for data in dict.fromkeys(column(rows, "data")):
        of_data = rows_with(rows, "data", data)
        for setting in dict.fromkeys(column(of_data, "setting")):
            group = rows_with(of_data, "setting", setting)
            final = [row["points"][-1]["averaged"] for row in group]
            lines.append(
                [
                    data,
                    setting,
                    len(group),
                    group[0]["steps"],
                    mean_and_deviation(final),
                    f"{_test_error(group, statistics.mean(final)):.3f}",
                    f"{spread(group):.4f}",
                    f"{spread(group, 'last'):.4f}",
                    f"{statistics.mean(column(group, 'seconds')):.0f}",
                    f"{nearest[data]:.4f}",
                ]
            )
    points = sum(len(last_half([row], "last")) for row in rows[:1])
    note = (
        "Image AUROC of the averaged weights, mean ± standard deviation over seeds. The error of "
        "the test set is the standard error of that AUROC by the number of its images (Hanley and "
        "McNeil): what another set of as many images would change, which seeds do not show. A "
        "range is the "
        f"largest minus the smallest value over the seeds and {points} points of the last half of "
        "the training. Nothing is selected on these images. CPU s: CPU time of the training "
        "without features and measurements. PatchCore: its bank (1 % coreset) on the same "
        f"features. Weights {rows[0]['weights']}. `{command}`"
    )
    return f"{markdown_table(HEADER, lines)}\n\n{note}"


def _test_error(rows: Sequence[Row], auroc: float) -> float:
    return standard_error(auroc, rows[0]["defective"], rows[0]["good"])
