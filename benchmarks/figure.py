"""The report of `benchmarks.run`: JSON, a Markdown table, the figure of speed against accuracy."""

from __future__ import annotations

import io
import json
import math
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from flawline.benchmarks.figure_styles import BARS, BUSY_RING, FRONT, GREY, TEXT, Styles
from flawline.benchmarks.points import (
    DETECTORS,
    Panels,
    Point,
    Row,
    common_settings,
    panels_of,
    pareto_front,
)
from flawline.benchmarks.run_table import busy_note, run_table
from flawline.runtime.files import write_atomically

# Sizes in inches. A README shows the figure at about this width, with text of the size of its own.
WIDTH = 9.0
LEGEND_WIDTH = 2.4
TICK_LABELS = 0.2  # beside a panel
PANEL_HEIGHT = 2.4
SINGLE_HEIGHT = 4.0  # of a figure with one panel
FRAME_HEIGHT = 0.9  # title and label of the speed
LEGEND_LINE = 0.2
MOST_COLUMNS = 3
LETTERS = 13  # of text that fit into an inch
SPACE = 1.5  # letters between two ticks
# Multiples of a power of ten that may be ticks of a logarithmic axis, the densest first.
TICKS = (
    (1, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.2, 2.5, 2.8, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9),
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 2, 3, 5, 7),
    (1, 2, 5),
    (1, 3),
    (1,),
)
MOST_TICKS = 5
# Room beside the slowest and the fastest point, as a factor.
SPEED_MARGIN = 1.25
# Room above and below the points, as a share of their range, and the shortest range in percent:
# differences of a tenth of a percent look as small as they are.
ACCURACY_MARGIN = 0.12
SHORTEST_RANGE = 2.0
# Fewer points need no line that shows which of them is not exceeded.
FEWEST_FOR_FRONT = 3
BEYOND = 1e3  # outside of all axes, as a factor of the speed and in percent of accuracy


def write_report(rows: Sequence[Row], out: Path) -> list[Path]:
    """Write run.json, run.md, fps-auroc.png and fps-auroc.svg to `out` and return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    # On a full disk, the results of an earlier run stay as they are.
    results = out / "run.json"
    write_atomically(results, (json.dumps(rows, indent=2) + "\n").encode())
    table = out / "run.md"
    write_atomically(table, run_table(rows).encode())
    return [results, table, *draw_speed_and_accuracy(rows, out)]


def draw_speed_and_accuracy(rows: Sequence[Row], out: Path) -> list[Path]:
    """Draw FPS against image AUROC into `out` as PNG and SVG and return the paths."""
    return save_figure(speed_and_accuracy(rows), out, "fps-auroc")


def save_figure(figure: Figure, out: Path, name: str) -> list[Path]:
    """Write a figure to `out` as PNG and SVG and return the paths."""
    paths = [out / f"{name}.png", out / f"{name}.svg"]
    for path in paths:
        picture = io.BytesIO()
        figure.savefig(picture, format=path.suffix.removeprefix("."), dpi=150)
        write_atomically(path, picture.getvalue())
    return paths


def speed_and_accuracy(rows: Sequence[Row]) -> Figure:
    """Return the figure of FPS against image AUROC.

    There is one panel per data set, and one for their mean. All panels have the same axes. The
    colour is that of the detector, the marker that of the engine, and its filling that of the
    precision. Bars go from the slowest to the fastest repeat.
    """
    panels = panels_of(rows)
    points = panels.all_points
    styles = Styles(points)
    legend = styles.legend(panels.groups, _remarks(panels))
    number = len(panels.points)
    columns = number if number <= MOST_COLUMNS else math.ceil(math.sqrt(number))
    columns = min(columns, MOST_COLUMNS)
    lines = math.ceil(number / columns)
    height = SINGLE_HEIGHT if lines == 1 else lines * PANEL_HEIGHT
    height = FRAME_HEIGHT + max(height, legend.lines * LEGEND_LINE)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    letters = int(LETTERS * (WIDTH - LEGEND_WIDTH) / columns * 0.8)
    for axes, (title, panel) in zip(grid.flat, panels.points.items(), strict=False):
        axes.set_title(textwrap.fill(title, letters), fontsize=TEXT, fontweight="bold")
        draw_panel(axes, panel, styles)
        if _has_front(panels, panel):
            draw_front(axes, panel)
    scale_speed(grid[0, 0], points, (WIDTH - LEGEND_WIDTH) / columns - TICK_LABELS)
    scale_accuracy(grid[0, 0], points)
    for place in range(number, grid.size):
        grid.flat[place].set_axis_off()
        # The panel above is now the lowest of its column.
        grid.flat[place - columns].tick_params(labelbottom=True)
    _label(figure, rows)
    legend.draw(figure)
    return figure


def draw_panel(axes: Axes, points: Sequence[Point], styles: Styles) -> None:
    """Draw the points with their bars: of the speed over repeats, of the accuracy over seeds."""
    for point in points:
        colour = styles.colour(point)
        if point.slowest is not None and point.fastest is not None:
            axes.plot([point.slowest, point.fastest], [point.auroc] * 2, color=colour, **BARS)
        if point.lowest is not None and point.highest is not None:
            axes.plot([point.fps] * 2, [point.lowest, point.highest], color=colour, **BARS)
        if point.busy:
            axes.plot([point.fps], [point.auroc], **BUSY_RING)
        axes.plot([point.fps], [point.auroc], zorder=3, **styles.marker(point))
    draw_frame(axes)


def draw_frame(axes: Axes) -> None:
    """Draw the grid and the axes of a panel."""
    axes.grid(color="0.92")
    axes.tick_params(labelsize=TEXT, length=3, color="0.6")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")


def _has_front(panels: Panels, points: Sequence[Point]) -> bool:
    """Whether it is of interest which points of a panel are not exceeded by any other."""
    # Data sets do not compete.
    return panels.groups == DETECTORS and len(points) >= FEWEST_FOR_FRONT


def draw_front(axes: Axes, points: Sequence[Point]) -> None:
    """Draw the border of what is reached in both speed and accuracy, to the edges of the axes."""
    front = pareto_front(points)
    # The edges are not known before all panels are drawn; what is beyond them is cut off.
    speeds = [front[0].fps / BEYOND, *(point.fps for point in front), front[-1].fps]
    accuracies = [front[0].auroc, *(point.auroc for point in front), -BEYOND]
    axes.plot(speeds, accuracies, drawstyle="steps-pre", scalex=False, scaley=False, **FRONT)


def _remarks(panels: Panels) -> list[tuple[Line2D, str]]:
    """Return the entries of the legend for what is drawn beside the points."""
    remarks = []
    if any(_has_front(panels, points) for points in panels.points.values()):
        remarks.append((Line2D([], [], **FRONT), "Pareto front"))
    points = panels.all_points
    if any(point.slowest is not None for point in points):
        bar = Line2D([], [], color=GREY, **BARS)
        remarks.append((bar, "slowest to fastest repeat"))
    if any(point.busy for point in points):
        remarks.append((Line2D([], [], **BUSY_RING), "timed on a busy machine"))
    return remarks


def scale_speed(
    axes: Axes, points: Sequence[Point], width: float, most_ticks: int = MOST_TICKS
) -> None:
    """Scale the axis of the speed logarithmically: equal distances are equal factors."""
    low = min(point.slowest or point.fps for point in points) / SPEED_MARGIN
    high = max(point.fastest or point.fps for point in points) * SPEED_MARGIN
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(speed_ticks(low, high, width, most_ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))


def speed_ticks(low: float, high: float, width: float, most: int = MOST_TICKS) -> list[float]:
    """Return the most round numbers whose texts fit below a logarithmic axis of `width` inches."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for multiples in TICKS:
        ticks = []
        for exponent in exponents:
            ticks += [multiple * 10.0**exponent for multiple in multiples]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most and _fit(ticks, width / math.log(high / low)):
            break
    return ticks


def _fit(ticks: Sequence[float], inches: float) -> bool:
    """Whether the texts of ticks do not touch; a factor of e is `inches` wide."""
    for tick, following in pairwise(ticks):
        letters = (len(plain_number(tick)) + len(plain_number(following))) / 2
        if math.log(following / tick) * inches < (letters + SPACE) / LETTERS:
            return False
    return True


def plain_number(value: float) -> str:
    """Return a number without an exponent, such as "0.5", "12" or "20000"."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def scale_accuracy(axes: Axes, points: Sequence[Point]) -> None:
    """Scale the axis of the accuracy, in percent, to the range of the points."""
    values = []
    for point in points:
        values += [point.auroc, point.lowest or point.auroc, point.highest or point.auroc]
    spread = max(max(values) - min(values), SHORTEST_RANGE)
    high = max(values) + ACCURACY_MARGIN * spread
    low = max(values) - (1 + ACCURACY_MARGIN) * spread
    ticks = np.asarray(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]).tick_values(low, high))
    # No AUROC is above 100 %.
    inside = [float(tick) for tick in ticks if low <= tick <= min(high, 100)]
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(inside))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))


def _label(figure: Figure, rows: Sequence[Row]) -> None:
    """Write the labels of the axes, and above them what was measured where."""
    figure.supxlabel("frames per second (median; resizing and engine, batch 1)", fontsize=TEXT)
    figure.supylabel("image AUROC [%]", fontsize=TEXT)
    devices = "; ".join(sorted({str(row["device"]) for row in rows}))
    facts = ", ".join([devices, *common_settings(rows)])
    lines = ["Speed and accuracy, from the same calls", facts]
    busy = busy_note(rows)
    if busy is not None:
        lines.append(busy)
    # Beside the legend.
    wrapped = [textwrap.fill(line, int(LETTERS * (WIDTH - LEGEND_WIDTH))) for line in lines]
    figure.suptitle("\n".join(wrapped), x=0.01, ha="left", fontsize=TEXT)
