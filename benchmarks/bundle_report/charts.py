"""The charts of the bundle report, as SVG, with the stylesheet of the whole page and the way numbers are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.train import metrics

Numbers = npt.NDArray[Any]
Labels = npt.NDArray[np.bool_]
Row = tuple[
    str, str, tuple[str, str], Numbers
]  # of a histogram: CSS class, name, two lines of words, scores

BINS, LEFT, RIGHT, TOP, PITCH = 44, 200, 890, 50, 108  # of the histograms, in SVG units
FADE = "<linearGradient id='fade'><stop/><stop offset='1' stop-opacity='0'/></linearGradient>"
# Blue and vermilion of Okabe and Ito, which every kind of colour vision tells apart; print is always on white.
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #57606a; --rule: #d0d7de; --box: #f4f6f8;
  --held: #7d9bb3; --good: #0072b2; --bad: #d55e00; --band: #57606a2e; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e8eaed; --soft: #a3adb8;
  --rule: #3a424b; --box: #1e2329; --held: #8298aa; --good: #56b4e9; --bad: #f58a43; --band: #a3adb833; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1040px; padding: 32px 24px 64px; background: var(--paper); color: var(--ink);
  font: 17px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 32px; line-height: 1.2; margin: 0; } h2 { font-size: 23px; margin: 52px 0 8px; }
h3 { font-size: 18px; margin: 28px 0 6px; } p { margin: 8px 0; max-width: 78ch; } .soft { color: var(--soft); }
.verdict { font-size: 21px; line-height: 1.45; padding: 16px 20px; margin: 20px 0 12px; background: var(--box);
  border-left: 6px solid var(--ink); max-width: none; } .verdict * { white-space: nowrap; }
.swatch { display: inline-block; width: 1.5em; height: .85em; background: var(--band); border: 1px solid var(--rule); }
svg { display: block; width: 100%; height: auto; overflow: visible; margin: 16px 0 8px; }
svg text { font-size: 15px; fill: var(--ink); } svg .soft { fill: var(--soft); } svg .key { font-weight: 600; }
svg .grid { stroke: var(--rule); } svg .axis { stroke: var(--soft); }
svg .limit { stroke: var(--ink); stroke-width: 2; } svg .band { fill: var(--band); } svg .open { fill: url(#fade); }
svg stop { stop-color: var(--band); } svg .held { fill: var(--held); } svg .good { fill: var(--good); }
svg .bad { fill: var(--bad); } svg .curve { fill: none; stroke: var(--good); stroke-width: 3; }
svg .chance { stroke: var(--soft); stroke-dasharray: 5 5; } svg .point { fill: var(--bad); stroke: var(--paper); }
.roc { display: flex; gap: 36px; align-items: center; } .roc svg { flex: 0 0 520px; min-width: 0; }
.cards { display: grid; grid-template-columns: 1fr 1fr; gap: 18px; margin-top: 14px; }
figure { margin: 0; padding: 12px; background: var(--box); border-top: 4px solid var(--rule); break-inside: avoid; }
figure.wrong { border-top-color: var(--bad); } figure div { display: flex; gap: 8px; align-items: flex-start; }
figure img { width: calc(50% - 4px); max-height: 320px; object-fit: contain; object-position: left top; }
figcaption { font-size: 15px; line-height: 1.4; margin-top: 8px; } .wrong figcaption b { color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: 8px 0; break-inside: auto; }
th, td { text-align: left; vertical-align: top; padding: 6px 20px 6px 0; border-bottom: 1px solid var(--rule); }
tr { break-inside: avoid; } td.n, th.n { text-align: right; } .facts { font-size: 15px; }
.facts th { font-weight: 400; color: var(--soft); width: 15em; } td.bar { width: 34%; min-width: 120px; }
.bar span { display: inline-block; height: 14px; background: var(--good); vertical-align: -1px; }
@media (max-width: 700px) { .cards { grid-template-columns: 1fr; } .roc { display: block; } svg { min-width: 560px; }
  main { overflow-x: auto; } }
@media print { body { font-size: 11pt; padding: 0; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h2, h3 { break-after: avoid; } section { break-inside: avoid; } .verdict { font-size: 14pt; } }
"""


@dataclass(frozen=True)
class Axis:
    """Scores to pixels, cut into bins of `step`; a bin ends at the threshold, so that none lies on both its sides."""

    threshold: float
    step: float
    first: int
    bins: int

    @classmethod
    def of(cls, good: Numbers, every: Numbers, threshold: float) -> Axis:
        """A few far scores must not press all others together: they go into the last bin."""
        low, high = min(every.min(), threshold), max(every.max(), threshold)
        normal = max([threshold, *good])
        if len(good):
            high = min(high, normal + 6 * (normal - good.min()))
        span = (high - low) or 1.0
        # Room for the words on both sides of the threshold.
        low, high = min(low, threshold - 0.15 * span), max(high, threshold + 0.2 * span)
        step = (high - low) / BINS
        first = math.floor((low - threshold) / step)
        return cls(threshold, float(step), first, math.ceil((high - threshold) / step) - first)

    def x(self, score: float) -> float:
        return LEFT + (RIGHT - LEFT) * min(
            max(((score - self.threshold) / self.step - self.first) / self.bins, 0), 1
        )

    def counts(self, scores: Numbers) -> Numbers:
        # A score on the threshold is good: bins are open below and closed above.
        at = np.ceil((scores - self.threshold) / self.step).astype(int) - 1 - self.first
        return np.bincount(np.clip(at, 0, self.bins - 1), minlength=self.bins)

    def ticks(self) -> list[float]:
        """Round numbers on the axis, five to ten of them."""
        rough = self.bins * self.step / 9
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        low, high = (self.threshold + k * self.step for k in (self.first, self.first + self.bins))
        return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def histograms(rows: Sequence[Row], axis: Axis, band: tuple[float | None, float | None]) -> str:
    """One row of bars per group over one axis, the threshold through all of them, `band` shaded (None: open)."""
    middle, bottom, body = axis.x(axis.threshold), TOP + PITCH * len(rows), [FADE]
    if any(end is not None for end in band):
        x0, x1 = (
            edge if end is None else axis.x(end)
            for end, edge in zip(band, (LEFT, RIGHT), strict=True)
        )
        # An open end fades out.
        body.append(_box("band" if band[1] is not None else "open", x0, TOP, x1 - x0, bottom - TOP))
    for base, (css, name, words, scores) in zip(
        range(TOP + PITCH, bottom + 1, PITCH), rows, strict=True
    ):
        counts = axis.counts(scores)
        width, height = (RIGHT - LEFT) / axis.bins, (PITCH - 20) / counts.max()
        body += [
            _box(css, LEFT + k * width + 0.75, base - n * height, width - 1.5, n * height)
            for k, n in enumerate(counts)
            if n
        ]
        body += [
            _text(0, base - 62, name, css="key"),
            _text(0, base - 42, words[0]),
            _text(0, base - 22, words[1]),
        ]
        body += [
            _text(LEFT - 8, base - PITCH + 28, f"{counts.max()}", "end", "soft"),
            _text(LEFT - 8, base, "0", "end", "soft"),
        ]
        body.append(_line("axis", LEFT, base, RIGHT, base))
    body += [
        _line("limit", middle, 24, middle, bottom + 6),
        _text(0, TOP - 12, "images per bar", css="soft"),
    ]
    body.append(_text(middle, 16, f"threshold {number(axis.threshold)}", "middle", "key"))
    body += [
        _text(middle - 10, 38, "judged good", "end"),
        _text(middle + 10, 38, "judged anomalous"),
    ]
    for tick in axis.ticks():
        x = axis.x(tick)
        body += [
            _line("axis", x, bottom, x, bottom + 6),
            _text(x, bottom + 24, f"{tick:g}", "middle", "soft"),
        ]
    end = axis.threshold + (axis.first + axis.bins - 1) * axis.step
    far = any(scores.max() > end + axis.step for *_, scores in rows)
    title = (
        "anomaly score (no unit; higher is more anomalous)"
        + f"; last bar: all above {number(end)}" * far
    )
    body.append(_text((LEFT + RIGHT) / 2, bottom + 50, title, "middle"))
    return _svg(900, bottom + 56, "histograms of the anomaly scores with the threshold", body)


def roc(
    labels: Labels,
    scores: Numbers,
    point: tuple[float, float],
    promised: tuple[float, float],
    name: str,
) -> str:
    """The ROC curve with the operating point (false alarms, found), and the promised false-alarm rates shaded."""
    left, top, size = 66, 10, 400
    curve = " ".join(
        f"{left + size * x:.1f},{top + size * (1 - y):.1f}"
        for x, y in zip(*metrics.roc_curve(labels, scores), strict=True)
    )
    body = [_box("band", left + size * promised[0], top, size * (promised[1] - promised[0]), size)]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y, text = left + size * tick, top + size * (1 - tick), f"{100 * tick:g}"
        body += [
            _line("grid", left, y, left + size, y),
            _text(left - 8, y + 5, text, "end", "soft"),
        ]
        body += [
            _line("grid", x, top, x, top + size),
            _text(x, top + size + 22, text, "middle", "soft"),
        ]
    x, y = left + size * point[0], top + size * (1 - point[1])
    # The curve only rises: what is to the right of the point and below it is free. Where that is too small, the
    # corner below the diagonal is.
    beside = point[0] < 0.6 and point[1] > 0.25
    at, down = (x + 12, y + 28) if beside else (left + 0.53 * size, top + 0.74 * size)
    body += [
        _line("chance", left, top + size, left + size, top),
        f"<polyline class='curve' points='{curve}'/>",
        _line("axis", x, y, x if beside else at - 6, y if beside else down - 5),
        f"<circle class='point' cx='{x:.1f}' cy='{y:.1f}' r='8'/>",
        _text(at, down, name, css="key"),
        _text(at, down + 20, f"{percent(point[0])} false alarms"),
        _text(at, down + 40, f"{percent(point[1])} found"),
        _text(left + size / 2, top + size + 48, "false alarms [% of good test images]", "middle"),
        f"<text transform='translate(16 {top + size / 2:g}) rotate(-90)' text-anchor='middle'>",
        "found [% of defective test images]</text>",
    ]
    return _svg(left + size + 14, top + size + 54, "ROC curve with the operating point", body)


def _svg(width: float, height: float, label: str, body: list[str]) -> str:
    return f"<svg viewBox='0 0 {width:g} {height:g}' role='img' aria-label='{label}'>{''.join(body)}</svg>"


def _text(x: float, y: float, text: str, anchor: str = "start", css: str = "") -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' class='{css}'>{escape(text)}</text>"
    )


def _line(css: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f"<line class='{css}' x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'/>"


def _box(css: str, x: float, y: float, width: float, height: float) -> str:
    return (
        f"<rect class='{css}' x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}'/>"
    )


def percent(x: float) -> str:
    return (f"{100 * x:.1f}".removesuffix(".0") if x >= 0.001 else f"{100 * x:.1g}") + "\u202f%"


def number(x: float) -> str:
    return f"{x:.4g}"
