"""The charts, intervals and numbers of the bundle report, without a bundle."""

from __future__ import annotations

import re

import numpy as np
import pytest

from flawline.benchmarks.bundle_report.charts import (
    LEFT,
    RIGHT,
    Axis,
    HistogramRow,
    OperatingPoint,
    draw_histograms,
    draw_roc,
)
from flawline.benchmarks.bundle_report.confidence import images_for_upper_bound, rate_interval
from flawline.benchmarks.bundle_report.formatting import number, percent, percent_range

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
    assert chart_axis.x(1e6) == RIGHT
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
        assert LEFT <= chart_axis.x(tick) <= RIGHT


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
    expected_left = LEFT if low is None else axis().x(low)
    expected_right = RIGHT if high is None else axis().x(high)
    assert float(left) == pytest.approx(expected_left, abs=0.1)
    assert float(left) + float(width) == pytest.approx(expected_right, abs=0.2)


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
