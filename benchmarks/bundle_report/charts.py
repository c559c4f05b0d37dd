"""The charts of the bundle report: score histograms and the ROC curve, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flawline.benchmarks.bundle_report.formatting import number, percent
from flawline.benchmarks.bundle_report.svg import Drawing
from flawline.train.metrics import Labels, Scores, roc_curve

# The histograms, in SVG units: the plotted area, and the distance from one row to the next.
BINS = 44
LEFT = 200
RIGHT = 890
TOP = 50
ROW_PITCH = 108
# The ROC curve, in SVG units: the corner and the side of the plotted square.
ROC_LEFT = 66
ROC_TOP = 10
ROC_SIDE = 400
FADE = "<linearGradient id='fade'><stop/><stop offset='1' stop-opacity='0'/></linearGradient>"


@dataclass(frozen=True)
class Axis:
    """The score axis of the histograms, cut into bins of width `step`.

    A bin ends at the threshold, so that no bin holds both good and anomalous verdicts. `first` is
    the number of bins between the threshold and the left end, negative where it lies left of it.
    """

    threshold: float
    step: float
    first: int
    bins: int

    @classmethod
    def covering(cls, good: Scores, scores: Scores, threshold: float) -> Axis:
        """Return an axis for `scores` [n], of which `good` [m] are those of good images.

        A few scores that are far above all good ones do not compress the others: they go into the
        last bin.
        """
        low = min(scores.min(), threshold)
        high = max(scores.max(), threshold)
        if len(good):
            highest_good = max(good.max(), threshold)
            high = min(high, highest_good + 6 * (highest_good - good.min()))
        # All scores may be equal.
        span = (high - low) or 1.0
        # Room for the words on both sides of the threshold.
        low = min(low, threshold - 0.15 * span)
        high = max(high, threshold + 0.2 * span)
        step = float((high - low) / BINS)
        first = math.floor((low - threshold) / step)
        last = math.ceil((high - threshold) / step)
        return cls(threshold, step, first, last - first)

    @property
    def last_bin(self) -> float:
        """The score where the last bin starts."""
        return self.threshold + (self.first + self.bins - 1) * self.step

    def x(self, score: float) -> float:
        """Return the place of a score, in SVG units; scores beyond an end are placed on it."""
        fraction = ((score - self.threshold) / self.step - self.first) / self.bins
        return LEFT + (RIGHT - LEFT) * min(max(fraction, 0), 1)

    def counts(self, scores: Scores) -> Scores:
        """Return how many of `scores` [n] are in each bin: int [bins]."""
        # A score on the threshold is good: bins are open below and closed above.
        steps = np.ceil((scores - self.threshold) / self.step).astype(int)
        bins = np.clip(steps - 1 - self.first, 0, self.bins - 1)
        return np.bincount(bins, minlength=self.bins)

    def ticks(self) -> list[float]:
        """Return four to ten round numbers on the axis."""
        low = self.threshold + self.first * self.step
        high = low + self.bins * self.step
        smallest = (high - low) / 9
        power = 10.0 ** math.floor(math.log10(smallest))
        tick = 10 * power
        for factor in (5, 2, 1):
            if factor * power >= smallest:
                tick = factor * power
        return [i * tick for i in range(math.ceil(low / tick), math.floor(high / tick) + 1)]


@dataclass(frozen=True)
class HistogramRow:
    """One group of images: CSS class, name, a count of its outcome in words, scores [n]."""

    css: str
    name: str
    outcome: str
    scores: Scores


def draw_histograms(
    rows: Sequence[HistogramRow], axis: Axis, band: tuple[float | None, float | None]
) -> str:
    """Return the score histograms of the groups, one below the other, with the threshold.

    `band` is the interval of the threshold, which is shaded; an end that is None is open.
    """
    bottom = TOP + ROW_PITCH * len(rows)
    label = "histograms of the anomaly scores with the threshold"
    drawing = Drawing(900, bottom + 56, label)
    drawing.add(FADE)
    # The band comes first, because later elements cover earlier ones.
    _draw_band(drawing, axis, band, bottom)
    highest = axis.threshold
    for index, row in enumerate(rows):
        _draw_row(drawing, axis, row, TOP + ROW_PITCH * (index + 1))
        highest = max(highest, row.scores.max())
    _draw_threshold(drawing, axis, bottom)
    _draw_score_axis(drawing, axis, bottom)
    title = "anomaly score (no unit; higher is more anomalous)"
    if highest > axis.last_bin + axis.step:
        title += f"; last bar: all above {number(axis.last_bin)}"
    drawing.text((LEFT + RIGHT) / 2, bottom + 50, title, "middle")
    return drawing.render()


def _draw_band(
    drawing: Drawing, axis: Axis, band: tuple[float | None, float | None], bottom: float
) -> None:
    low, high = band
    if low is None and high is None:
        return
    left = float(LEFT)
    if low is not None:
        left = axis.x(low)
    right = float(RIGHT)
    css = "open"  # fades out to the right
    if high is not None:
        right = axis.x(high)
        css = "band"
    drawing.box(css, left, TOP, right - left, bottom - TOP)


def _draw_row(drawing: Drawing, axis: Axis, row: HistogramRow, base: float) -> None:
    """Draw the bars of one group on the line y = `base`, with its name and its count scale."""
    counts = axis.counts(row.scores)
    highest = counts.max()
    bar_width = (RIGHT - LEFT) / axis.bins
    # The highest bar ends below the line of the row above.
    unit = (ROW_PITCH - 20) / highest
    for index, count in enumerate(counts):
        if count:
            # A small gap separates neighbouring bars.
            left = LEFT + index * bar_width + 0.75
            drawing.box(row.css, left, base - count * unit, bar_width - 1.5, count * unit)
    drawing.text(0, base - 62, row.name, css="key")
    drawing.text(0, base - 42, f"{len(row.scores)} images")
    drawing.text(0, base - 22, row.outcome)
    drawing.text(LEFT - 8, base - ROW_PITCH + 28, f"{highest}", "end", "soft")
    drawing.text(LEFT - 8, base, "0", "end", "soft")
    drawing.line("axis", (LEFT, base), (RIGHT, base))


def _draw_threshold(drawing: Drawing, axis: Axis, bottom: float) -> None:
    x = axis.x(axis.threshold)
    drawing.line("limit", (x, 24), (x, bottom + 6))
    drawing.text(0, TOP - 12, "images per bar", css="soft")
    drawing.text(x, 16, f"threshold {number(axis.threshold)}", "middle", "key")
    drawing.text(x - 10, 38, "judged good", "end")
    drawing.text(x + 10, 38, "judged anomalous")


def _draw_score_axis(drawing: Drawing, axis: Axis, bottom: float) -> None:
    for tick in axis.ticks():
        x = axis.x(tick)
        drawing.line("axis", (x, bottom), (x, bottom + 6))
        drawing.text(x, bottom + 24, f"{tick:g}", "middle", "soft")


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold with its fractions of false alarms and of detections on the test images."""

    threshold: float
    false_alarm_rate: float
    detection_rate: float


def draw_roc(
    labels: Labels, scores: Scores, point: OperatingPoint, stated: tuple[float, float]
) -> str:
    """Return the ROC curve of `scores` [n] with the operating point.

    `labels` [n] are True for defective images; the `stated` interval of the false-alarm rate is
    shaded.
    """
    label = "ROC curve with the operating point"
    drawing = Drawing(ROC_LEFT + ROC_SIDE + 14, ROC_TOP + ROC_SIDE + 54, label)
    low, high = stated
    drawing.box("band", _roc_x(low), ROC_TOP, ROC_SIDE * (high - low), ROC_SIDE)
    _draw_roc_grid(drawing)
    drawing.line("chance", (_roc_x(0), _roc_y(0)), (_roc_x(1), _roc_y(1)))
    curve = []
    for false_alarms, detections in zip(*roc_curve(labels, scores), strict=True):
        curve.append((_roc_x(false_alarms), _roc_y(detections)))
    drawing.polyline("curve", curve)
    _draw_operating_point(drawing, point)
    return drawing.render()


def _roc_x(false_alarm_rate: float) -> float:
    return ROC_LEFT + ROC_SIDE * false_alarm_rate


def _roc_y(detection_rate: float) -> float:
    return ROC_TOP + ROC_SIDE * (1 - detection_rate)


def _draw_roc_grid(drawing: Drawing) -> None:
    bottom = _roc_y(0)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = _roc_x(tick)
        y = _roc_y(tick)
        text = f"{100 * tick:g}"
        drawing.line("grid", (ROC_LEFT, y), (_roc_x(1), y))
        drawing.text(ROC_LEFT - 8, y + 5, text, "end", "soft")
        drawing.line("grid", (x, ROC_TOP), (x, bottom))
        drawing.text(x, bottom + 22, text, "middle", "soft")
    drawing.text(_roc_x(0.5), bottom + 48, "false alarms [% of good test images]", "middle")
    drawing.vertical_text(16, _roc_y(0.5), "detected [% of defective test images]")


def _draw_operating_point(drawing: Drawing, point: OperatingPoint) -> None:
    x = _roc_x(point.false_alarm_rate)
    y = _roc_y(point.detection_rate)
    # The curve only rises, so the area to the right of the point and below it is free. Where that
    # is too small for the label, the corner below the diagonal is used, with a line to the point.
    if point.false_alarm_rate < 0.6 and point.detection_rate > 0.25:
        left = x + 12
        top = y + 28
    else:
        left = _roc_x(0.53)
        top = _roc_y(0.26)
        drawing.line("axis", (x, y), (left - 6, top - 5))
    drawing.circle("point", (x, y), 8)
    drawing.text(left, top, f"threshold {number(point.threshold)}", css="key")
    drawing.text(left, top + 20, f"{percent(point.false_alarm_rate)} false alarms")
    drawing.text(left, top + 40, f"{percent(point.detection_rate)} detected")
