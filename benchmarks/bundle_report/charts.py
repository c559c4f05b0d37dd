"""The score histograms of the bundle report, as SVG, for wide screens and for phones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flawline.benchmarks.bundle_report.formatting import number
from flawline.benchmarks.bundle_report.svg import Drawing
from flawline.train.metrics import Scores

BINS = 44


@dataclass(frozen=True)
class Layout:
    """Where the parts of the histograms are, in SVG units.

    `name` is a CSS class, which shows one layout and hides the other. The plotted area reaches from
    `left` to `right`, and begins at `top`; `row_pitch` is the distance from one row to the next.
    The words on a row are beside it, or above it if `words_above`.
    """

    name: str
    width: float
    left: float
    right: float
    top: float
    row_pitch: float
    words_above: bool

    def x(self, axis: Axis, score: float) -> float:
        """Return the place of a score; scores beyond an end of the axis are placed on it."""
        return self.left + (self.right - self.left) * axis.fraction(score)


WIDE = Layout("wide", 900, left=200, right=890, top=50, row_pitch=108, words_above=False)
# As wide as a phone, so that its text is not reduced.
NARROW = Layout("narrow", 340, left=26, right=334, top=46, row_pitch=112, words_above=True)


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
        high = max(high, threshold + 0.35 * span)
        step = float((high - low) / BINS)
        first = math.floor((low - threshold) / step)
        last = math.ceil((high - threshold) / step)
        return cls(threshold, step, first, last - first)

    @property
    def last_bin(self) -> float:
        """The score where the last bin starts."""
        return self.threshold + (self.first + self.bins - 1) * self.step

    def fraction(self, score: float) -> float:
        """Return the place of a score: 0 at the left end or left of it, 1 at the right end."""
        fraction = ((score - self.threshold) / self.step - self.first) / self.bins
        return min(max(fraction, 0.0), 1.0)

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
    rows: Sequence[HistogramRow],
    axis: Axis,
    band: tuple[float | None, float | None],
    layout: Layout = WIDE,
) -> str:
    """Return the score histograms of the groups, one below the other, with the threshold.

    `band` is the interval of the threshold, which is shaded; an end that is None is open.
    """
    bottom = layout.top + layout.row_pitch * len(rows)
    titles = _axis_titles(rows, axis, layout)
    height = bottom + 32 + 20 * len(titles)
    drawing = Drawing(layout.width, height, _describe(rows, axis), layout.name)
    # The band comes first, because later elements cover earlier ones.
    _draw_band(drawing, axis, band, layout, bottom)
    for index, row in enumerate(rows):
        _draw_row(drawing, axis, row, layout, layout.top + layout.row_pitch * (index + 1))
    _draw_threshold(drawing, axis, layout, bottom)
    # After the line of the threshold, which it would cross.
    for index, row in enumerate(rows):
        _draw_words(drawing, row, layout, layout.top + layout.row_pitch * (index + 1))
    _draw_ticks(drawing, axis, layout, bottom)
    middle = (layout.left + layout.right) / 2
    if layout.words_above:
        middle = layout.width / 2
    for index, title in enumerate(titles):
        drawing.text(middle, bottom + 48 + 20 * index, title, "middle")
    return drawing.render()


def _describe(rows: Sequence[HistogramRow], axis: Axis) -> str:
    """Return the content of the drawing in words, for readers who cannot see it."""
    parts = [f"Histograms of the anomaly scores. Threshold {number(axis.threshold)}."]
    for row in rows:
        low = number(row.scores.min())
        high = number(row.scores.max())
        parts.append(
            f"{row.name}: {len(row.scores)} images, scores {low} to {high}, {row.outcome}."
        )
    return " ".join(parts)


def _axis_titles(rows: Sequence[HistogramRow], axis: Axis, layout: Layout) -> list[str]:
    """Return the lines below the score axis."""
    titles = ["anomaly score (higher is more anomalous)"]
    highest = max(row.scores.max() for row in rows)
    if highest > axis.last_bin + axis.step:
        titles.append(f"last bar: all above {number(axis.last_bin)}")
    if layout.words_above:
        return [*titles, "height of a bar: number of images"]
    return ["; ".join(titles)]


def _draw_band(
    drawing: Drawing,
    axis: Axis,
    band: tuple[float | None, float | None],
    layout: Layout,
    bottom: float,
) -> None:
    low, high = band
    if low is None and high is None:
        return
    left = float(layout.left)
    if low is not None:
        left = layout.x(axis, low)
    if high is not None:
        drawing.box("band", left, layout.top, layout.x(axis, high) - left, bottom - layout.top)
        return
    # Fades out to the right. A hidden drawing must not own the gradient of the other one.
    fade = f"fade-{layout.name}"
    stops = "<stop/><stop offset='1' stop-opacity='0'/>"
    drawing.add(f"<linearGradient id='{fade}'>{stops}</linearGradient>")
    width = layout.right - left
    drawing.box("open", left, layout.top, width, bottom - layout.top, f"url(#{fade})")


def _draw_row(drawing: Drawing, axis: Axis, row: HistogramRow, layout: Layout, base: float) -> None:
    """Draw the bars of one group on the line y = `base`, with its count scale."""
    counts = axis.counts(row.scores)
    highest = counts.max()
    bar_width = (layout.right - layout.left) / axis.bins
    # The highest bar ends below the line of the row above, or below the words.
    highest_bar = layout.row_pitch - 20
    if layout.words_above:
        highest_bar = layout.row_pitch - 38
    unit = highest_bar / highest
    for index, count in enumerate(counts):
        if count:
            # A small gap separates neighbouring bars.
            left = layout.left + index * bar_width + 0.75
            drawing.box(row.css, left, base - count * unit, bar_width - 1.5, count * unit)
    drawing.text(layout.left - 6, base - highest_bar + 8, f"{highest}", "end", "soft")
    drawing.text(layout.left - 6, base, "0", "end", "soft")
    drawing.line("axis", (layout.left, base), (layout.right, base))


def _draw_words(drawing: Drawing, row: HistogramRow, layout: Layout, base: float) -> None:
    """Write the name of the group whose bars stand on the line y = `base`, and its counts."""
    if layout.words_above:
        words = f"{row.name}: {len(row.scores)}, {row.outcome}"
        drawing.text(0, base - layout.row_pitch + 24, words, css="key")
        return
    drawing.text(0, base - 62, row.name, css="key")
    drawing.text(0, base - 42, f"{len(row.scores)} images")
    drawing.text(0, base - 22, row.outcome)


def _draw_threshold(drawing: Drawing, axis: Axis, layout: Layout, bottom: float) -> None:
    x = layout.x(axis, axis.threshold)
    drawing.line("limit", (x, 24), (x, bottom + 6))
    # The words stay inside of the drawing.
    middle = min(max(x, 70), layout.width - 70)
    drawing.text(middle, 16, f"threshold {number(axis.threshold)}", "middle", "key")
    good = "good"
    anomalous = "anomalous"
    if not layout.words_above:
        good = "judged good"
        anomalous = "judged anomalous"
        drawing.text(0, layout.top - 12, "images per bar", css="soft")
    drawing.text(x - 8, 38, good, "end")
    drawing.text(x + 8, 38, anomalous)


def _draw_ticks(drawing: Drawing, axis: Axis, layout: Layout, bottom: float) -> None:
    ticks = axis.ticks()
    if layout.words_above and len(ticks) > 5:
        # Every second one leaves room for their numbers.
        ticks = ticks[::2]
    for tick in ticks:
        x = layout.x(axis, tick)
        drawing.line("axis", (x, bottom), (x, bottom + 6))
        drawing.text(x, bottom + 24, f"{tick:g}", "middle", "soft")
