"""The panels of published points: other machines and other data than ours, hollow markers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flawline.benchmarks.figure import draw_frame, scale_accuracy, scale_speed
from flawline.benchmarks.figure_styles import TEXT
from flawline.benchmarks.label_places import Label, draw_column, draw_labels
from flawline.benchmarks.points import Point
from flawline.benchmarks.published.figures import (
    MVTEC_AD,
    THREE_COLLECTIONS,
    Figures,
    read_figures,
)
from flawline.benchmarks.published.figures import Point as PublishedPoint

HOLLOW: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 7.0,
    "markerfacecolor": "white",
    "markeredgecolor": "0.25",
    "markeredgewidth": 1.4,
    "zorder": 3,
}
SMALL_TEXT = 7.0
MARKER = 8.0
PANEL_INCHES = 3.6
WIDTHS = (1.35, 1)
# How much of the logarithmic axis of the speed the names of the ticks take, and their distance
# from the axis, as factors.
NAMES_ROOM = 25
TICK_ROOM = 1.35
# The ticks of methods without a published speed are on the axis of the accuracy.
TICK: dict[str, Any] = {
    "linestyle": "none",
    "marker": "_",
    "markersize": 11.0,
    "markeredgecolor": "0.25",
    "markeredgewidth": 1.4,
    "clip_on": False,
    "zorder": 3,
}


@dataclass(frozen=True)
class PublishedPanel:
    """Axes with the points and the ticks on them, whose names are not written yet."""

    axes: Axes
    points: Sequence[PublishedPoint]
    ticks: Sequence[Tick]


@dataclass(frozen=True)
class Tick:
    """An accuracy in percent without a speed."""

    text: str
    auroc: float


def draw_published(figure: Figure) -> list[PublishedPanel]:
    """Draw the panels of published points into a figure.

    `label_published` writes their names when the axes have their final places.
    """
    figures = read_figures()
    figure.suptitle(
        "As published: other machines, other data and other conditions than above, one image per "
        "call.\nTicks on the axis are methods whose speed on a named machine is not published.",
        x=0.01,
        ha="left",
        fontsize=TEXT,
    )
    left, right = figure.subplots(1, 2, width_ratios=WIDTHS)
    on_mvtec = speed_points(figures, MVTEC_AD)
    means = speed_points(figures, THREE_COLLECTIONS)
    panels = [
        PublishedPanel(left, on_mvtec, ticks_without_speed(figures, on_mvtec)),
        PublishedPanel(right, means, []),
    ]
    for panel, title in zip(
        panels, (f"{MVTEC_AD}, each on its own machine", _title_of(means)), strict=True
    ):
        _draw(panel, title)
    return panels


def label_published(panels: Sequence[PublishedPanel]) -> None:
    """Write the names beside the points and ticks of `draw_published`."""
    for panel in panels:
        labels = []
        ticks = []
        markers = []
        for point in panel.points:
            x, y = _place(point)
            labels.append(Label(_name(point, panel.points), x, y))
            markers.append((x, y))
        low = panel.axes.get_xlim()[0]
        for tick in panel.ticks:
            ticks.append(Label(tick.text, low, tick.auroc))
        taken = draw_column(panel.axes, ticks, low * TICK_ROOM, SMALL_TEXT)
        draw_labels(panel.axes, labels, markers, SMALL_TEXT, MARKER, taken)


def speed_points(figures: Figures, data: str) -> list[PublishedPoint]:
    """Return the points of a collection of data sets that have an accuracy and a speed.

    Of several sources of the same method, the first one counts.
    """
    found: dict[str, PublishedPoint] = {}
    for point in figures.points:
        complete = point.image_auroc is not None and point.single_image_fps is not None
        if point.data == data and complete:
            found.setdefault(point.method, point)
    return list(found.values())


def ticks_without_speed(figures: Figures, drawn: Sequence[PublishedPoint]) -> list[Tick]:
    """Return the methods of the tables of MVTec AD of which no speed is published.

    Of several variants of a method, the best one counts. The average is computed from the
    categories; a printed one that differs is named.
    """
    best: dict[str, Tick] = {}
    for table in figures.tables_of(MVTEC_AD):
        average = table.averages[-1]
        for number, column in enumerate(table.columns):
            printed = average.printed[number][0]
            computed = table.recomputed(average)[number][0]
            value = printed if computed is None else round(computed, 1)
            if value is None or column.method in {point.method for point in drawn}:
                continue
            text = f"{column.method} {value:g}"
            if table.differs(average, number, 0):
                text += f" (printed: {printed:g})"
            tick = Tick(text, value)
            if column.method not in best or best[column.method].auroc < value:
                best[column.method] = tick
    return list(best.values())


def _title_of(points: Sequence[PublishedPoint]) -> str:
    machines = ", ".join(sorted({str(point.gpu) for point in points}))
    return f"mean of MVTec AD, VisA and\nMVTec LOCO, all on one {machines}"


def _draw(panel: PublishedPanel, title: str) -> None:
    axes = panel.axes
    axes.set_title(title, fontsize=TEXT, fontweight="bold", loc="left")
    for point in panel.points:
        x, y = _place(point)
        axes.plot([x], [y], **HOLLOW)
    draw_frame(axes)
    scaled = []
    for point in panel.points:
        x, y = _place(point)
        scaled.append(Point(point.method, "", "", x, None, None, y, False))
    scale_speed(axes, scaled, PANEL_INCHES)
    for tick in panel.ticks:
        scaled.append(Point(tick.text, "", "", scaled[0].fps, None, None, tick.auroc, False))
    scale_accuracy(axes, scaled)
    if panel.ticks:
        low, high = axes.get_xlim()
        axes.set_xlim(low / NAMES_ROOM, high)
        axes.plot(
            [low / NAMES_ROOM] * len(panel.ticks), [tick.auroc for tick in panel.ticks], **TICK
        )
    axes.set_xlabel("frames per second", fontsize=TEXT)
    axes.set_ylabel("image AUROC [%]", fontsize=TEXT)


def _place(point: PublishedPoint) -> tuple[float, float]:
    fps = point.single_image_fps
    assert fps is not None
    assert point.image_auroc is not None
    return fps, point.image_auroc


def _name(point: PublishedPoint, others: Sequence[PublishedPoint]) -> str:
    """Return the name of a point, with its GPU unless all points have the same."""
    if len({other.gpu for other in others}) == 1:
        return point.method
    return f"{point.method}\n{point.gpu}"
