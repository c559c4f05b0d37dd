"""Places for the names of points in a figure, so that they cover neither each other nor points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

# Directions in which a label may lie, as (x, y), the preferred ones first.
DIRECTIONS = (
    (1.0, 0.0),
    (0.0, 1.0),
    (0.0, -1.0),
    (-1.0, 0.0),
    (0.8, 0.6),
    (0.8, -0.6),
    (-0.8, 0.6),
    (-0.8, -0.6),
)
# Distances of the label from its point, in points of print.
DISTANCES = (8.0, 13.0, 19.0, 27.0, 36.0, 47.0, 60.0, 75.0)
# A label that is farther away is connected with its point.
CONNECTED_ABOVE = 10.0
ROUNDS = 6  # of moving each label while the others stay
KEPT = 24  # places of a label that are compared with those of the others
MARGIN = 1.5  # around a label, in points of print
# What a square point of print of each fault costs; a point of distance costs 1.
OVERLAP_COST = 25.0
CROSSING_COST = 40.0
OUTSIDE_COST = 1e6
LINE_HEIGHT = 1.12  # of a column of labels, in heights of the text
INK = "0.15"
CONNECTION: dict[str, Any] = {"color": "0.65", "linewidth": 0.6, "zorder": 2.5}

Xy = tuple[float, float]
# Left, lower, right and upper edge in pixels.
Box = tuple[float, float, float, float]
Boxes = npt.NDArray[np.float64]  # [n, 4]


@dataclass(frozen=True)
class Label:
    """A text and the point that it names, in the units of the axes."""

    text: str
    x: float
    y: float
    bold: bool = False


@dataclass(frozen=True)
class _Place:
    """A box for a label in pixels, where it is joined to its point, and its cost by itself."""

    box: Box
    end: Xy
    distance: float
    cost: float


def draw_labels(
    axes: Axes,
    labels: Sequence[Label],
    markers: Sequence[tuple[float, float]],
    size: float,
    marker_size: float,
    taken: Sequence[Box] = (),
) -> None:
    """Write the labels near their points, where they cover least.

    `markers` are the (x, y) of all points of the axes, which have a diameter of `marker_size`
    points of print. The text is `size` points high. `taken` are boxes of other texts in pixels. The
    limits and the place of the axes must be final, because places are chosen in pixels.
    """
    scale = axes.figure.get_dpi() / 72
    centres = axes.transData.transform(markers)
    radius = (marker_size / 2 + 1) * scale
    obstacles = np.vstack(
        [np.hstack([centres - radius, centres + radius]), *np.reshape(taken, (-1, 1, 4))]
    )
    candidates = []
    anchors = []
    for label in labels:
        x, y = axes.transData.transform((label.x, label.y))
        anchors.append((float(x), float(y)))
        box = text_size(axes, label, size)
        candidates.append(_places(anchors[-1], box, axes.bbox, obstacles, scale))
    chosen = _choose(candidates, anchors, scale)
    for label, anchor, place in zip(labels, anchors, chosen, strict=True):
        _draw(axes, label, anchor, place, size)


def text_size(axes: Axes, label: Label, size: float) -> tuple[float, float]:
    """Return the width and height of a text of `size` points in pixels."""
    drawn = axes.text(0, 0, label.text, fontsize=size, fontweight=_weight(label))
    box = drawn.get_window_extent()
    drawn.remove()
    return box.width, box.height


def _weight(label: Label) -> str:
    return "bold" if label.bold else "normal"


def _places(
    anchor: Xy, size: tuple[float, float], inside: Bbox, obstacles: Boxes, scale: float
) -> list[_Place]:
    """Return the best places that a label may take, with what each costs without other labels."""
    places = []
    width, height = size
    for number, (x, y) in enumerate(DIRECTIONS):
        for distance in DISTANCES:
            reach = distance * scale
            left = anchor[0] + x * reach + (math.copysign(width / 2, x) if x else 0) - width / 2
            low = anchor[1] + y * reach + (math.copysign(height / 2, y) if y else 0) - height / 2
            box = (left, low, left + width, low + height)
            end = (
                min(max(anchor[0], box[0]), box[2]),
                min(max(anchor[1], low + 0.3 * height), low + 0.7 * height),
            )
            cost = distance + 0.4 * number
            cost += OVERLAP_COST * _overlaps(box, obstacles, scale)
            if distance > CONNECTED_ABOVE:
                # The point of the label itself is always crossed.
                cost += CROSSING_COST * max(0, _crossings(anchor, end, obstacles) - 1)
            if not (inside.x0 <= box[0] and box[2] <= inside.x1):
                cost += OUTSIDE_COST
            if not (inside.y0 <= box[1] and box[3] <= inside.y1):
                cost += OUTSIDE_COST
            places.append(_Place(box, end, distance, cost))
    return sorted(places, key=lambda place: place.cost)[:KEPT]


def _choose(
    candidates: Sequence[Sequence[_Place]], anchors: Sequence[Xy], scale: float
) -> list[_Place]:
    """Return a place for each label: the cheapest ones, then improved label by label."""
    chosen = [places[0] for places in candidates]
    for _ in range(ROUNDS):
        before = list(chosen)
        for index, places in enumerate(candidates):
            others = [place for number, place in enumerate(chosen) if number != index]
            ends = [anchor for number, anchor in enumerate(anchors) if number != index]
            if others:
                costs = [_cost(place, anchors[index], others, ends, scale) for place in places]
                chosen[index] = places[costs.index(min(costs))]
        if chosen == before:
            break
    return chosen


def _cost(
    place: _Place, anchor: Xy, others: Sequence[_Place], ends: Sequence[Xy], scale: float
) -> float:
    """Return what a place costs beside those of the other labels and their connections."""
    boxes = np.array([other.box for other in others])
    cost = place.cost + OVERLAP_COST * _overlaps(place.box, boxes, scale)
    connected = place.distance > CONNECTED_ABOVE
    if connected:
        cost += CROSSING_COST * _crossings(anchor, place.end, boxes)
    own = np.array([place.box])
    for other, start in zip(others, ends, strict=True):
        if other.distance > CONNECTED_ABOVE:
            cost += CROSSING_COST * _crossings(start, other.end, own)
            if connected and _cross_each_other(anchor, place.end, start, other.end):
                cost += CROSSING_COST
    return cost


def _overlaps(box: Box, others: Boxes, scale: float) -> float:
    """Return the area that a box with its margin shares with others, in square points of print."""
    margin = MARGIN * scale
    width = np.minimum(box[2] + margin, others[:, 2]) - np.maximum(box[0] - margin, others[:, 0])
    height = np.minimum(box[3] + margin, others[:, 3]) - np.maximum(box[1] - margin, others[:, 1])
    return float((np.maximum(width, 0) * np.maximum(height, 0)).sum()) / scale**2


def _crossings(start: Xy, end: Xy, boxes: Boxes) -> int:
    """Return how many boxes the line from `start` to `end` passes through."""
    first = np.zeros(len(boxes))
    last = np.ones(len(boxes))
    for axis in (0, 1):
        length = end[axis] - start[axis]
        # A line along the other axis is inside or outside along its whole length.
        length = length if abs(length) > 1e-9 else 1e-9
        enter = (boxes[:, axis] - start[axis]) / length
        leave = (boxes[:, axis + 2] - start[axis]) / length
        first = np.maximum(first, np.minimum(enter, leave))
        last = np.minimum(last, np.maximum(enter, leave))
    return int((first < last).sum())


def _cross_each_other(start: Xy, end: Xy, other_start: Xy, other_end: Xy) -> bool:
    """Whether two lines cross."""

    def side(a: Xy, b: Xy, c: Xy) -> bool:
        return (c[1] - a[1]) * (b[0] - a[0]) > (b[1] - a[1]) * (c[0] - a[0])

    apart = side(start, other_start, other_end) != side(end, other_start, other_end)
    return apart and side(start, end, other_start) != side(start, end, other_end)


def _draw(axes: Axes, label: Label, anchor: Xy, place: _Place, size: float) -> None:
    to_data = axes.transData.inverted()
    if place.distance > CONNECTED_ABOVE:
        ends = to_data.transform([anchor, place.end])
        axes.plot(ends[:, 0], ends[:, 1], **CONNECTION)
    left, low, right, high = place.box
    x, y = to_data.transform(((left + right) / 2, (low + high) / 2))
    axes.text(
        x,
        y,
        label.text,
        fontsize=size,
        fontweight=_weight(label),
        color=INK,
        ha="center",
        va="center",
        zorder=4,
        # The name stays legible where a line of the grid passes behind it.
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4, "alpha": 0.8},
    )


def draw_column(axes: Axes, labels: Sequence[Label], x: float, size: float) -> list[Box]:
    """Write labels below each other from `x` to the right, each as near to its height as possible.

    Each is connected with its point, which must be left of `x`. Returns the boxes of the texts in
    pixels. The limits and the place of the axes must be final.
    """
    ordered = sorted(labels, key=lambda label: label.y)
    places = [float(axes.transData.transform((label.x, label.y))[1]) for label in ordered]
    sizes = [text_size(axes, label, size) for label in ordered]
    heights = [LINE_HEIGHT * height for _, height in sizes]
    spread = _spread(places, heights, axes.bbox.y0, axes.bbox.y1)
    left = float(axes.transData.transform((x, 0))[0])
    gap = 2 * axes.figure.get_dpi() / 72
    to_data = axes.transData.inverted()
    boxes = []
    for label, middle, (width, height) in zip(ordered, spread, sizes, strict=True):
        end_x, end_y = to_data.transform((left, middle))
        axes.plot([label.x, end_x], [label.y, end_y], **CONNECTION)
        text_x, _ = to_data.transform((left + gap, middle))
        axes.text(text_x, end_y, label.text, fontsize=size, color=INK, va="center_baseline")
        boxes.append((left, middle - height / 2, left + gap + width, middle + height / 2))
    return boxes


def _spread(
    places: Sequence[float], heights: Sequence[float], low: float, high: float
) -> list[float]:
    """Return places in the same order that are at least a height apart, and nearly as given.

    Groups of texts that touch are moved together, so that their mean stays where it was.
    """
    groups: list[tuple[list[float], list[float]]] = []
    for place, height in zip(places, heights, strict=True):
        groups.append(([place], [height]))
        while len(groups) > 1 and _bottom(groups[-1], low, high) < _top(groups[-2], low, high):
            wanted, tall = groups.pop()
            groups[-1] = (groups[-1][0] + wanted, groups[-1][1] + tall)
    spread = []
    for group in groups:
        edge = _bottom(group, low, high)
        for height in group[1]:
            spread.append(edge + height / 2)
            edge += height
    return spread


def _bottom(group: tuple[list[float], list[float]], low: float, high: float) -> float:
    """Return the lower edge of a group of texts, which stays between `low` and `high`."""
    wanted, heights = group
    total = sum(heights)
    middle = sum(wanted) / len(wanted)
    return max(low, min(middle - total / 2, high - total))


def _top(group: tuple[list[float], list[float]], low: float, high: float) -> float:
    return _bottom(group, low, high) + sum(group[1])
