"""The figures of a sweep: frames per second against image AUROC, ours and those published."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flawline.benchmarks.figure import (
    FEWEST_FOR_FRONT,
    LETTERS,
    WIDTH,
    draw_front,
    draw_panel,
    scale_accuracy,
    scale_speed,
)
from flawline.benchmarks.figure_styles import (
    BARS,
    BUSY_RING,
    FRONT,
    GREY,
    RING_SIZE,
    TEXT,
    Styles,
    variant_of,
)
from flawline.benchmarks.label_places import Label, draw_labels
from flawline.benchmarks.points import Point, pareto_front
from flawline.benchmarks.sweep.report.points import TUNED_MARK, Panel, panels_of
from flawline.benchmarks.sweep.report.published_panels import (
    draw_published,
    label_published,
)
from flawline.benchmarks.sweep.report.results import Machine
from flawline.cameras.listing import count_of

# Sizes in inches.
MAIN_HEIGHT = 5.2
PUBLISHED_HEIGHT = 3.9
SMALL_HEIGHT = 3.4
# Columns of the panels of single data sets, with few detectors, which have room in narrow ones.
COLUMNS = 2
FEW_DETECTORS = 8
SMALL_TEXT = 7.5  # of the names beside points, in points of print
MARKER = 8.0
TICKS_PER_INCH = 1.2
LINK: dict[str, Any] = {"color": "0.85", "linewidth": 1.0, "zorder": 1.5}
IN_TURNS_LABEL = "frames per second of the engine alone (median, one image per call)"
SPEED_LABEL = "frames per second (median; resizing and engine, one image per call)"
ACCURACY_LABEL = "image AUROC [%]"


def main_figure(machine: Machine) -> Figure | None:
    """Return the figure of a machine: the mean of the data sets, or the only one.

    Returns None where no row has both a speed and an accuracy.
    """
    panels = panels_of(machine)
    if not panels:
        return None
    figure = Figure(figsize=(WIDTH, MAIN_HEIGHT), layout="constrained")
    axes = _draw_main(figure, machine, panels[0])
    _finish(figure)
    _label(axes, panels[0])
    return figure


def figure_with_published(machine: Machine) -> Figure | None:
    """Return the figure of the README: ours above, those published below in panels of their own.

    Returns None where no row has both a speed and an accuracy.
    """
    panels = panels_of(machine)
    if not panels:
        return None
    figure = Figure(figsize=(WIDTH, MAIN_HEIGHT + PUBLISHED_HEIGHT), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(MAIN_HEIGHT, PUBLISHED_HEIGHT))
    upper, lower = parts
    axes = _draw_main(upper, machine, panels[0])
    published = draw_published(lower)
    _finish(figure)
    _label(axes, panels[0])
    label_published(published)
    return figure


def data_sets_figure(machine: Machine) -> Figure | None:
    """Return the figure with a panel for each data set; None if the first figure shows all."""
    panels = [panel for panel in panels_of(machine) if panel.title in machine.data_sets]
    if len(panels) < 2:
        return None
    columns = COLUMNS if len(machine.names) <= FEW_DETECTORS else 1
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(WIDTH, 1.0 + lines * SMALL_HEIGHT), layout="constrained")
    all_points: list[Point] = []
    for panel in panels:
        all_points += panel.points
    styles = Styles(all_points, variant_of)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, panel, styles, WIDTH / columns - 0.8, _speed_label(machine))
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    _legend(figure, panels, styles)
    _title(figure, machine, panels)
    _finish(figure)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _label(axes, panel)
    return figure


def published_figure() -> Figure:
    """Return the figure of what others published."""
    figure = Figure(figsize=(WIDTH, PUBLISHED_HEIGHT), layout="constrained")
    published = draw_published(figure)
    _finish(figure)
    label_published(published)
    return figure


def _draw_main(figure: Figure, machine: Machine, panel: Panel) -> Axes:
    axes: Axes = figure.subplots()
    styles = Styles(panel.points, variant_of)
    _draw(axes, panel, styles, WIDTH - 1, _speed_label(machine))
    _legend(figure, [panel], styles)
    _title(figure, machine, [panel])
    return axes


def _draw(axes: Axes, panel: Panel, styles: Styles, width: float, speed_label: str) -> None:
    letters = int(LETTERS * width)
    axes.set_title(
        textwrap.fill(panel.title, letters), fontsize=TEXT, fontweight="bold", loc="left"
    )
    for points in _by_group(panel.points):
        # The engines of one detector have nearly the same accuracy: a line joins them.
        joined = sorted(points, key=lambda point: point.fps)
        axes.plot([point.fps for point in joined], [point.auroc for point in joined], **LINK)
    draw_panel(axes, panel.points, styles)
    if len(panel.points) >= FEWEST_FOR_FRONT:
        draw_front(axes, panel.points)
    scale_speed(axes, panel.points, width, int(width * TICKS_PER_INCH))
    scale_accuracy(axes, panel.points)
    axes.set_xlabel(speed_label, fontsize=TEXT)
    axes.set_ylabel(ACCURACY_LABEL, fontsize=TEXT)


def _speed_label(machine: Machine) -> str:
    return IN_TURNS_LABEL if machine.in_turns else SPEED_LABEL


def _by_group(points: Sequence[Point]) -> list[list[Point]]:
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.group, []).append(point)
    return list(groups.values())


def _label(axes: Axes, panel: Panel) -> None:
    """Write the name of each detector beside its fastest point, bold on the Pareto front."""
    labels = []
    front = set()
    if len(panel.points) >= FEWEST_FOR_FRONT:
        front = {point.group for point in pareto_front(panel.points)}
    size = RING_SIZE if any(point.busy for point in panel.points) else MARKER
    for points in _by_group(panel.points):
        best = max(points, key=lambda point: (point.fps, point.auroc))
        labels.append(Label(best.group, best.fps, best.auroc, best.group in front))
    markers = [(point.fps, point.auroc) for point in panel.points]
    draw_labels(axes, labels, markers, SMALL_TEXT, size)


def _legend(figure: Figure, panels: Sequence[Panel], styles: Styles) -> None:
    """Draw the legend of engines, precisions and bars below the axes."""
    entries: dict[str, Line2D] = {}
    points = [point for panel in panels for point in panel.points]
    for point in points:
        entries.setdefault(variant_of(point), Line2D([], [], **styles.marker(point)))
    if any(len(panel.points) >= FEWEST_FOR_FRONT for panel in panels):
        entries["Pareto front (bold names)"] = Line2D([], [], **FRONT)
    if any(point.slowest is not None for point in points):
        entries["— slowest to fastest repeat"] = Line2D([], [], color=GREY, **BARS)
    if any(point.lowest is not None for point in points):
        bar = Line2D([], [], color=GREY, linestyle="none", marker="|", markersize=10)
        entries["lowest to highest seed"] = bar
    if any(point.busy for point in points):
        entries["timed on a busy machine"] = Line2D([], [], **BUSY_RING)
    if any(point.group.endswith(TUNED_MARK) for point in points):
        entries["settings chosen on this data set"] = Line2D(
            [], [], linestyle="none", marker="$*$", color=GREY, markersize=6
        )
    figure.legend(
        list(entries.values()),
        [name.removeprefix("— ") for name in entries],
        loc="outside lower left",
        ncols=3,
        fontsize=TEXT,
        frameon=False,
        columnspacing=1.6,
        handlelength=1.6,
    )


def _title(figure: Figure, machine: Machine, panels: Sequence[Panel]) -> None:
    """Write what the figure shows above it, and what its panels leave out."""
    seeds = max(len(result.rows) for result in machine.results)
    facts = [machine.device, count_of(len(machine.names), "detector"), count_of(seeds, "seed")]
    lines = ["Speed and accuracy of the same bundles", ", ".join(facts)]
    # Without them, a panel looks complete.
    lines += dict.fromkeys(panel.remark for panel in panels if panel.remark is not None)
    wrapped = [textwrap.fill(line, int(LETTERS * WIDTH)) for line in lines]
    figure.suptitle("\n".join(wrapped), x=0.01, ha="left", fontsize=TEXT)


def _finish(figure: Figure) -> None:
    """Give every axes its final place, on which the places of the names depend."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
