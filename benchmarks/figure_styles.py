"""Colours, markers and fillings of the figure of speed against accuracy, and its legend."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flawline.benchmarks.points import Point
from flawline.runtime.precisions import PRECISIONS

# Distinguishable with every kind of colour blindness: Okabe and Ito, without yellow, which is too
# pale for small markers, and without black, which is the text.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "p", "P", "X", "<", ">", "h", "8")
HOLLOW = "hollow"
FILLINGS = ("full", HOLLOW, "top", "left", "bottom", "right")
GREY = "0.35"
TEXT = 9  # points of print
SIZE = 8.0  # of a marker, in points of print
RING_SIZE = 15.0
# Letters of a line of the legend.
LEGEND_LETTERS = 30

FRONT: dict[str, Any] = {"color": "0.7", "linewidth": 1.0, "linestyle": "--", "zorder": 1}
BARS: dict[str, Any] = {"linewidth": 1.2, "zorder": 2}
BUSY_RING: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": RING_SIZE,
    "markerfacecolor": "none",
    "markeredgecolor": "#C01C28",
    "markeredgewidth": 1.0,
}


def group_of(point: Point) -> str:
    """Return what has a colour of its own in most figures."""
    return point.group


def variant_of(point: Point) -> str:
    """Return what has a colour of its own where names are written beside the points."""
    return f"{point.engine} {point.precision}"


class Styles:
    """The colour of each group, the marker of each engine and the filling of each precision.

    The first ones of each kind are taken from fixed lists. No two look the same, however many there
    are. `coloured` returns what gives a point its colour.
    """

    def __init__(
        self, points: Sequence[Point], coloured: Callable[[Point], str] = group_of
    ) -> None:
        self._coloured = coloured
        groups = list(dict.fromkeys(coloured(point) for point in points))
        engines = list(dict.fromkeys(point.engine for point in points))
        used = {point.precision for point in points}
        self.colours = dict(zip(groups, _colours(len(groups)), strict=True))
        self.markers: dict[str, Any] = {}
        for number, engine in enumerate(engines):
            # Stars with ever more points, in the unlikely case that the list is too short.
            self.markers[engine] = MARKERS[number] if number < len(MARKERS) else (number, 1, 0)
        # A precision looks the same in every figure.
        self.fillings: dict[str, Any] = {}
        for name, filling in zip(PRECISIONS, FILLINGS, strict=False):
            if name in used:
                self.fillings[name] = filling

    def colour(self, point: Point) -> str:
        """Return the colour of a point."""
        return self.colours[self._coloured(point)]

    def marker(self, point: Point) -> dict[str, Any]:
        """Return the properties of the line that draws a point."""
        return _marker(
            self.colour(point),
            self.markers[point.engine],
            self.fillings[point.precision],
        )

    def legend(self, groups: str, remarks: Sequence[tuple[Line2D, str]]) -> Legend:
        """Return the legend of everything that the points show, with `remarks` at its end.

        `groups` says what a group is.
        """
        legend = Legend()
        legend.heading(groups)
        for name, colour in self.colours.items():
            legend.add(Line2D([], [], **_marker(colour, "o", "full")), name)
        legend.heading("engine")
        for name, marker in self.markers.items():
            legend.add(Line2D([], [], **_marker(GREY, marker, "full")), name)
        legend.heading("precision")
        for name, filling in self.fillings.items():
            legend.add(Line2D([], [], **_marker(GREY, "o", filling)), name)
        if remarks:
            legend.heading("")
        for handle, text in remarks:
            legend.add(handle, text)
        return legend


class Legend:
    """Groups of entries with headings, in one column to the right of all axes."""

    def __init__(self) -> None:
        self._handles: list[Line2D] = []
        self._texts: list[str] = []
        self._headings: list[int] = []

    @property
    def lines(self) -> int:
        """The number of lines of text."""
        return sum(text.count("\n") + 1 for text in self._texts)

    def heading(self, text: str) -> None:
        """Begin a group, below an empty line."""
        self._headings.append(len(self._texts))
        self._handles.append(Line2D([], [], linestyle="none"))
        self._texts.append(f"\n{text}" if self._texts and text else text)

    def add(self, handle: Line2D, text: str) -> None:
        """Add an entry. A long text takes several lines."""
        self._handles.append(handle)
        self._texts.append(textwrap.fill(text, LEGEND_LETTERS))

    def draw(self, figure: Figure) -> None:
        """Draw the legend into the right margin of a figure."""
        legend = figure.legend(
            self._handles,
            self._texts,
            loc="outside right upper",
            fontsize=TEXT,
            frameon=False,
            handlelength=1.6,
            labelspacing=0.45,
        )
        for index in self._headings:
            legend.get_texts()[index].set_fontweight("bold")


def _marker(colour: str, marker: Any, filling: str) -> dict[str, Any]:
    return {
        "linestyle": "none",
        "color": colour,
        "marker": marker,
        # A hollow marker hides what is behind it, as all others do.
        "fillstyle": "full" if filling == HOLLOW else filling,
        "markerfacecolor": "white" if filling == HOLLOW else colour,
        "markersize": SIZE,
        "markeredgewidth": 1.4,
        "markerfacecoloralt": "white",
    }


def _colours(number: int) -> list[str]:
    if number <= len(COLOURS):
        return list(COLOURS[:number])
    # More colours than anyone tells apart by heart: evenly spaced, from dark to light.
    scale = colormaps["viridis"]
    return [to_hex(scale(index / number)) for index in range(number)]
