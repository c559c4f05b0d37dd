"""The ROC curve of the bundle report with its operating point, as SVG."""

from __future__ import annotations

from dataclasses import dataclass

from flawline.benchmarks.bundle_report.formatting import number, percent
from flawline.benchmarks.bundle_report.svg import Drawing
from flawline.train.metrics import Labels, Scores, roc_curve

# The corner and the side of the plotted square, in SVG units.
LEFT = 62
TOP = 10
SIDE = 300


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
    label = (
        f"ROC curve. At the threshold, {percent(point.false_alarm_rate)} of the good test images "
        f"are false alarms and {percent(point.detection_rate)} of the defective ones are detected."
    )
    drawing = Drawing(LEFT + SIDE + 14, TOP + SIDE + 54, label)
    low, high = stated
    drawing.box("band", _x(low), TOP, SIDE * (high - low), SIDE)
    _draw_grid(drawing)
    drawing.line("chance", (_x(0), _y(0)), (_x(1), _y(1)))
    curve = []
    for false_alarms, detections in zip(*roc_curve(labels, scores), strict=True):
        curve.append((_x(false_alarms), _y(detections)))
    drawing.polyline("curve", curve)
    _draw_operating_point(drawing, point)
    return drawing.render()


def _x(false_alarm_rate: float) -> float:
    return LEFT + SIDE * false_alarm_rate


def _y(detection_rate: float) -> float:
    return TOP + SIDE * (1 - detection_rate)


def _draw_grid(drawing: Drawing) -> None:
    bottom = _y(0)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = _x(tick)
        y = _y(tick)
        text = f"{100 * tick:g}"
        drawing.line("grid", (LEFT, y), (_x(1), y))
        drawing.text(LEFT - 8, y + 5, text, "end", "soft")
        drawing.line("grid", (x, TOP), (x, bottom))
        drawing.text(x, bottom + 22, text, "middle", "soft")
    drawing.text(_x(0.5), bottom + 48, "false alarms [% of good test images]", "middle")
    drawing.vertical_text(16, _y(0.5), "detected [% of defective test images]")


def _draw_operating_point(drawing: Drawing, point: OperatingPoint) -> None:
    x = _x(point.false_alarm_rate)
    y = _y(point.detection_rate)
    # The curve only rises, so the area to the right of the point and below it is free. Where that
    # is too small for the label, the corner below the diagonal is used, with a line to the point.
    if point.false_alarm_rate < 0.45 and point.detection_rate > 0.3:
        left = x + 12
        top = y + 26
    else:
        left = _x(0.48)
        top = _y(0.22)
        drawing.line("axis", (x, y), (left - 6, top - 5))
    drawing.circle("point", (x, y), 7)
    drawing.text(left, top, f"threshold {number(point.threshold)}", css="key")
    drawing.text(left, top + 19, f"{percent(point.false_alarm_rate)} false alarms")
    drawing.text(left, top + 38, f"{percent(point.detection_rate)} detected")
