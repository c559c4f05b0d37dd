"""The figure of the robustness study: AUROC and false alarms side by side, a line per change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flawline.benchmarks.figure import save_figure
from flawline.benchmarks.figure_styles import COLOURS, MARKERS
from flawline.benchmarks.robustness import NONE
from flawline.benchmarks.studies.robustness.report import (
    change_of,
    labels_of_measurements,
    measurements_of,
)

Row = Mapping[str, Any]
# Distance of two detectors on the line of one change, and the height of a line in inches.
OFFSET = 0.22
LINE_INCHES = 0.3


def draw_robustness(rows: Sequence[Row], out: Path) -> list[Path]:
    """Write OUT.png and OUT.svg and return their paths; every detector has a colour."""
    groups = measurements_of(rows)
    changes: list[str] = list(dict.fromkeys(change_of(row) for row in rows))
    height = 1.6 + LINE_INCHES * len(changes)
    figure = Figure(figsize=(8.4, height), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, label in enumerate(labels_of_measurements(groups)):
        shift = OFFSET * (number - (len(groups) - 1) / 2)
        _draw_detector(left, right, groups[number], label, changes, number, shift)
    left.set_yticks(range(len(changes)), changes)
    left.set_xlabel("image AUROC")
    right.set_xlabel("false alarms at the bundle's threshold [%]")
    left.invert_yaxis()
    right.set_xlim(-2, 102)
    for axes in (left, right):
        axes.grid(axis="x", color="0.93")
        axes.axhline(0.5, color="0.7", lw=0.8)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5)
    out.parent.mkdir(parents=True, exist_ok=True)
    return save_figure(figure, out.parent, out.name)


def _draw_detector(
    left: Axes,
    right: Axes,
    rows: Sequence[Row],
    label: str,
    changes: Sequence[str],
    number: int,
    shift: float,
) -> None:
    colour = COLOURS[number % len(COLOURS)]
    marker = MARKERS[number % len(MARKERS)]
    places = [changes.index(change_of(row)) + shift for row in rows]
    aurocs = [row["image_auroc"] for row in rows]
    rates = [100 * row["false_alarm_rate"] for row in rows]
    below = []
    above = []
    for row, rate in zip(rows, rates, strict=True):
        low, high = row["false_alarm_interval"]
        # Rounding may put a rate of 0 a little below its interval.
        below.append(max(0.0, rate - 100 * low))
        above.append(max(0.0, 100 * high - rate))
    style: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none", "ms": 4.5}
    first = rows[0]
    left.plot(aurocs, places, label=label, **style)
    right.errorbar(rates, places, xerr=(below, above), elinewidth=1, **style)
    for axes, values in ((left, aurocs), (right, rates)):
        # The images as they are, for comparison with every change.
        if first["perturbation"] == NONE:
            axes.axvline(values[0], color=colour, lw=0.8, ls=":")
