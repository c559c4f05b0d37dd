from __future__ import annotations

import numpy as np
import pytest

from flawline.runtime.conformal import beta_quantile
from flawline.runtime.threshold import (
    CalibrationError,
    check_false_alarm_rate,
    describe,
    images_for,
    require_different_scores,
    set_threshold,
)


def test_the_threshold_is_just_above_the_conformal_rank() -> None:
    scores = np.arange(1, 100, dtype=float)
    assert 99 < set_threshold(scores, 0.01).threshold < 100
    assert set_threshold(scores, 0.05).threshold == 95.5
    assert set_threshold(scores[::-1].copy(), 0.1).threshold == 90.5


def test_99_images_support_one_percent_and_98_do_not() -> None:
    assert set_threshold(np.arange(99.0)).false_alarm_rate == 0.01
    with pytest.raises(
        CalibrationError,
        match=r"needs 99 held-out good images, there are 98.*--false-alarm-rate 0\.0102",
    ):
        set_threshold(np.arange(98.0), 0.01)
    smallest = set_threshold(np.arange(98.0))
    assert smallest.false_alarm_rate == pytest.approx(1 / 99)
    assert 97 < smallest.threshold < 98


def test_the_rate_that_the_error_names_is_accepted() -> None:
    for n in range(1, 200):
        rate = np.ceil(1e4 / (n + 1)) / 1e4
        if rate < 1:
            assert set_threshold(np.arange(float(n)), rate).good_images == n


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(CalibrationError, match="between 0 and 1"):
        set_threshold(np.arange(50.0), rate)


@pytest.mark.parametrize("scores", [np.array([]), np.array([1.0, np.nan])])
def test_no_scores_and_nan_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(CalibrationError, match="no threshold"):
        set_threshold(scores)


def test_the_beta_quantile_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for a, b, p in (
        (1, 99, 0.05),
        (1, 99, 0.95),
        (5, 96, 0.5),
        (20, 10, 0.9),
        (1, 1, 0.3),
        (30, 4000, 0.95),
    ):
        assert beta_quantile(p, a, b) == pytest.approx(stats.beta.ppf(p, a, b), rel=1e-6)


def test_the_interval_holds_the_realised_rate_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        calibration = set_threshold(rng.exponential(size=80), 0.05)
        realised = np.exp(-calibration.threshold)
        inside += calibration.interval[0] <= realised <= calibration.interval[1]
    assert 0.92 < inside / 400 < 0.98


def test_a_rate_can_be_checked_before_the_scores_are_there() -> None:
    assert check_false_alarm_rate(None, 200) == 0.01
    assert check_false_alarm_rate(None, 9) == 0.1
    assert check_false_alarm_rate(0.2, 9) == 0.2
    with pytest.raises(CalibrationError, match="needs 99 held-out good images, there are 9"):
        check_false_alarm_rate(0.01, 9)
    with pytest.raises(CalibrationError, match="no held-out good images"):
        check_false_alarm_rate(None, 0)


def test_a_description_names_what_few_images_support() -> None:
    few = set_threshold(np.arange(9.0))
    note, line = describe(few, None)
    assert note.startswith("note: 9 held-out good images support a false-alarm rate of 10.0% at")
    assert note.endswith("1% takes 99")
    assert line.startswith("threshold 8.02582 for 10.0% false alarms (between ")
    assert describe(few, 0.1) == [line]


def test_the_threshold_keeps_a_margin_above_the_score_of_its_rank() -> None:
    scores = np.full(99, 5.0)
    scores[0] = 4.0
    assert set_threshold(scores, 0.01).threshold < 5.1
    assert set_threshold(scores, 0.01, margin=0.25).threshold == 5.25
    # Within a wide gap, the threshold stays in the middle.
    apart = np.arange(1, 100, dtype=float)
    assert set_threshold(apart, 0.05, margin=0.25).threshold == 95.5


def test_equal_scores_support_no_threshold() -> None:
    require_different_scores(np.array([1.0, 1.2]), 0.1)
    # One image has nothing to be equal to.
    require_different_scores(np.array([1.0]), 0.1)
    with pytest.raises(CalibrationError, match="the 3 good images are all equal within"):
        require_different_scores(np.array([1.0, 1.05, 1.1]), 0.11, "good images")


def test_scores_that_are_not_finite_are_not_called_equal() -> None:
    """As those of a detector whose training diverged."""
    scores = np.full(3, np.nan)
    require_different_scores(scores, 0.1)
    with pytest.raises(CalibrationError, match="3 good scores, not all finite"):
        set_threshold(scores, 0.25)


@pytest.mark.parametrize(("rate", "images"), [(0.05, 19), (0.01, 99), (0.005, 199), (0.1, 9)])
def test_a_rate_takes_so_many_images(rate: float, images: int) -> None:
    assert images_for(rate) == images
    assert check_false_alarm_rate(rate, images) == rate
    with pytest.raises(CalibrationError):
        check_false_alarm_rate(rate, images - 1)


def test_out_of_fold_scores_have_an_upper_bound_alone() -> None:
    split = set_threshold(np.arange(60.0))
    folds = set_threshold(np.arange(60.0), folds=5)
    assert (folds.threshold, folds.false_alarm_rate) == (split.threshold, split.false_alarm_rate)
    assert folds.folds == 5
    low, high = folds.interval
    assert low == 0
    # The largest of 60 scores: the rate is above p with probability (1 - p)^60.
    assert (1 - high) ** 60 == pytest.approx(0.05)
    line = describe(folds, 0.02, "good images")[0]
    assert (
        "(at most 4.9% with 95% confidence), from 60 good images, each scored by one of 5" in line
    )


def test_a_narrower_interval_than_that_of_a_fifth_of_the_images() -> None:
    """By 1.8 times at least, also at the rate of the hold-out."""
    low, high = set_threshold(np.arange(12.0)).interval
    for rate in (None, 1 / 13):
        ends = set_threshold(np.arange(60.0), rate, folds=5).interval
        assert high - low > 1.8 * (ends[1] - ends[0])
