"""The charts, intervals and numbers of the bundle report, without a bundle."""

from __future__ import annotations

import re

import numpy as np
import pytest

from flawline.benchmarks.bundle_report.charts import (
    NARROW,
    WIDE,
    Axis,
    HistogramRow,
    Layout,
    draw_histograms,
)
from flawline.benchmarks.bundle_report.confidence import images_for_upper_bound, rate_interval
from flawline.benchmarks.bundle_report.formatting import (
    megabytes,
    milliseconds,
    number,
    percent,
    percent_range,
)
from flawline.benchmarks.bundle_report.roc import OperatingPoint, draw_roc

GOOD = np.array([1.0, 2.0, 3.0, 4.0])
DEFECTIVE = np.array([4.5, 6.0, 9.0])
THRESHOLD = 4.0


def axis() -> Axis:
    return Axis.covering(GOOD, np.concatenate([GOOD, DEFECTIVE]), THRESHOLD)


def test_every_score_is_in_one_bin_and_the_threshold_separates_them() -> None:
    assert axis().counts(GOOD).sum() == len(GOOD)
    assert axis().counts(DEFECTIVE).sum() == len(DEFECTIVE)
    bins_up_to_the_threshold = -axis().first
    # A score that equals the threshold is good.
    assert axis().counts(GOOD)[bins_up_to_the_threshold:].sum() == 0
    assert axis().counts(DEFECTIVE)[:bins_up_to_the_threshold].sum() == 0


def test_scores_far_above_the_good_ones_are_in_the_last_bin() -> None:
    scores = np.array([5.0, 1e6])
    chart_axis = Axis.covering(GOOD, np.concatenate([GOOD, scores]), THRESHOLD)
    assert chart_axis.counts(scores)[-1] == 1
    assert chart_axis.fraction(1e6) == 1
    row = HistogramRow("defective", "defective test", "detected: 2", scores)
    assert "last bar: all above" in draw_histograms([row], chart_axis, (None, None))
    row = HistogramRow("defective", "defective test", "detected: 3", DEFECTIVE)
    assert "last bar" not in draw_histograms([row], axis(), (None, None))


@pytest.mark.parametrize("scale", [1e-6, 0.3, 1.0, 7.0, 1e9])
def test_there_are_four_to_ten_ticks_at_round_numbers(scale: float) -> None:
    chart_axis = Axis.covering(scale * GOOD, scale * DEFECTIVE, scale * THRESHOLD)
    ticks = chart_axis.ticks()
    assert 4 <= len(ticks) <= 10
    step = ticks[1] - ticks[0]
    mantissa = step / 10 ** np.floor(np.log10(step) + 1e-9)
    assert round(mantissa, 6) in (1, 2, 5)
    for tick in ticks:
        assert 0 < chart_axis.fraction(tick) < 1


def test_equal_scores_have_an_axis() -> None:
    ones = np.ones(3)
    assert Axis.covering(ones, ones, 1.0).counts(ones).sum() == 3


@pytest.mark.parametrize(
    ("band", "css"), [((2.0, 5.0), "band"), ((2.0, None), "open"), ((None, 5.0), "band")]
)
def test_the_interval_of_the_threshold_is_shaded(
    band: tuple[float | None, float | None], css: str
) -> None:
    row = HistogramRow("good", "good test", "false alarms: 0", GOOD)
    drawing = draw_histograms([row], axis(), band)
    (left, width) = re.findall(
        rf"<rect class='{css}' x='([\d.]+)' y='[\d.]+' width='([\d.]+)", drawing
    )[0]
    low, high = band
    expected_left = WIDE.left if low is None else WIDE.x(axis(), low)
    expected_right = WIDE.right if high is None else WIDE.x(axis(), high)
    assert float(left) == pytest.approx(expected_left, abs=0.1)
    assert float(left) + float(width) == pytest.approx(expected_right, abs=0.2)


@pytest.mark.parametrize("layout", [WIDE, NARROW])
@pytest.mark.parametrize("threshold", [0.5, 4.0, 9.0])
def test_every_element_of_the_histograms_lies_in_the_drawing(
    layout: Layout, threshold: float
) -> None:
    """With 0.58 of the font size for a character, as of DejaVu Sans, which is a wide font."""
    rows = [
        HistogramRow("good", "held-out good", "above threshold: 0", GOOD),
        HistogramRow("defective", "defective test", "detected: 3", DEFECTIVE),
    ]
    chart_axis = Axis.covering(GOOD, np.concatenate([GOOD, DEFECTIVE]), threshold)
    drawing = draw_histograms(rows, chart_axis, (1.0, None), layout)
    for x, width in re.findall(r"<rect [^>]*x='([-\d.]+)'[^>]*width='([-\d.]+)'", drawing):
        assert float(x) >= 0
        assert float(x) + float(width) <= layout.width
    texts = re.findall(r"<text x='([-\d.]+)'[^>]*text-anchor='(\w+)'[^>]*>([^<]*)<", drawing)
    assert len(texts) > 10
    for x, anchor, text in texts:
        length = 0.58 * 14 * len(text)
        start = float(x) - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * length
        assert start >= -1, text
        assert start + length <= layout.width + 1, text


def test_the_drawing_for_phones_is_not_wider_than_a_phone() -> None:
    assert NARROW.width <= 360
    drawing = draw_histograms([HistogramRow("good", "good test", "", GOOD)], axis(), (2, None))
    assert drawing.startswith("<svg class='wide'")


def test_the_two_layouts_do_not_share_a_gradient() -> None:
    """A browser ignores one in a drawing that is not displayed."""
    for layout in (WIDE, NARROW):
        row = HistogramRow("good", "good test", "false alarms: 0", GOOD)
        drawing = draw_histograms([row], axis(), (2.0, None), layout)
        assert f"<linearGradient id='fade-{layout.name}'>" in drawing
        assert f"fill='url(#fade-{layout.name})'" in drawing


def test_an_unknown_interval_of_the_threshold_is_not_shaded() -> None:
    row = HistogramRow("good", "good test", "false alarms: 0", GOOD)
    drawing = draw_histograms([row], axis(), (None, None))
    assert "class='band'" not in drawing
    assert "class='open'" not in drawing


def test_the_operating_point_lies_on_the_roc_curve() -> None:
    scores = np.concatenate([GOOD, DEFECTIVE])
    labels = np.array([False] * len(GOOD) + [True] * len(DEFECTIVE))
    point = OperatingPoint(THRESHOLD, 0.0, 1.0)
    drawing = draw_roc(labels, scores, point, (0.0, 0.1))
    (centre,) = re.findall(r"<circle class='point' cx='([\d.]+)' cy='([\d.]+)'", drawing)
    curve = re.findall(r"<polyline class='curve' points='([^']*)'", drawing)[0]
    assert ",".join(centre) in curve.split()
    assert "0\u202f% false alarms" in drawing
    assert "100\u202f% detected" in drawing


def test_the_interval_of_a_rate_is_that_of_clopper_and_pearson() -> None:
    # Without false alarms the upper end solves (1 - p)^n = 0.025.
    low, high = rate_interval(0, 30)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 30), abs=1e-9)
    low, high = rate_interval(30, 30)
    assert low == pytest.approx(0.025 ** (1 / 30), abs=1e-9)
    assert high == 1
    # From the table of Clopper and Pearson (1934): 3 of 10.
    assert rate_interval(3, 10) == pytest.approx((0.0667, 0.6525), abs=1e-4)


def test_enough_images_bound_the_threshold_from_above() -> None:
    from flawline.benchmarks.bundle_report.confidence import threshold_interval

    needed = images_for_upper_bound(0.05)
    rng = np.random.default_rng(0)
    assert threshold_interval(rng.random(needed), 0.05)[1] is not None
    assert threshold_interval(rng.random(needed - 1), 0.05)[1] is None


def test_numbers_are_short() -> None:
    assert number(1.02171) == "1.022"
    assert percent(0.5) == "50\u202f%"
    assert percent(0.1234) == "12.3\u202f%"
    assert percent(0.00012) == "0.01\u202f%"
    assert percent_range((0.0, 0.02)) == "0\u202f% to 2\u202f%"
    assert milliseconds(3.14159) == "3.1\u202fms"
    assert milliseconds(204.2) == "204\u202fms"
    assert megabytes(12_812_345) == "12.8\u202fMB"
