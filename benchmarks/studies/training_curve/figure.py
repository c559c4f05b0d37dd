"""The figure of the study: one panel per data set, AUROC against the share of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flawline.benchmarks.figure import save_figure
from flawline.benchmarks.studies.results import column, rows_with

Rows = Sequence[Mapping[str, Any]]
COLOURS = ("#d95f02", "#1b6ca8")
# Key of a point: line style, line width, and what the legend says.
KINDS = {
    "averaged": ("-", 1.8, "averaged weights"),
    "last": (":", 1.0, "weights of the step"),
}


def draw_curves(rows: Rows, nearest: Mapping[str, float], out: Path) -> list[Path]:
    """Write OUT.png and OUT.svg and return their paths; every seed is a line of its own."""
    names = list(dict.fromkeys(column(rows, "data")))
    settings = list(dict.fromkeys(column(rows, "setting")))
    figure = Figure(figsize=(4.2 * len(names), 4.4), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        _draw_panel(axes, rows_with(rows, "data", name), settings, nearest[name])
        axes.set_title(name, fontsize=10)
    panels[0].set_ylabel("image AUROC")
    handles, labels = panels[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3, fontsize=8.5)
    out.parent.mkdir(parents=True, exist_ok=True)
    return save_figure(figure, out.parent, out.name)


def _draw_panel(axes: Axes, rows: Rows, settings: Sequence[str], nearest: float) -> None:
    for setting, colour in zip(settings, COLOURS, strict=False):
        for row in rows_with(rows, "setting", setting):
            share = [100 * point["step"] / row["steps"] for point in row["points"]]
            for key, (style, width, words) in KINDS.items():
                values = [point[key] for point in row["points"]]
                axes.plot(share, values, style, color=colour, lw=width, label=f"{setting}, {words}")
    axes.axhline(nearest, color="0.4", ls="--", lw=1, label="PatchCore, same features")
    axes.axvline(50, color="0.85", lw=1, zorder=0)
    axes.set_xlabel("share of the training [%]")
    axes.grid(color="0.93")
