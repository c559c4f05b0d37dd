"""A threshold from good images alone, with a confidence interval for its false-alarm rate.

Each level is a conformal quantile of the scores of good images; see `conformal`, which also says
what its rate promises. A second, lower level may send parts to a person, and one of the values of
the anomaly map says where regions begin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline import FlawlineError
from flawline.runtime.calibration import Calibration, Level
from flawline.runtime.conformal import CONFIDENCE, conformal_level, rank_of
from flawline.runtime.manifest import Manifest, Spread

DEFAULT_RATE = 0.01
# Rates that messages give the necessary number of images for.
COMMON_RATES = (0.05, 0.01, 0.005)
HELD_OUT = "held-out good images"
# A threshold is at most so many times the spread of the good scores away from their mean.
FARTHEST_THRESHOLD = 1000


class CalibrationError(FlawlineError):
    """The good images do not support a threshold for the requested rate."""


@dataclass(frozen=True)
class Rates:
    """The shares of good parts that are asked for: rejected, and reviewed or rejected.

    None for `false_alarm` is 1 %, or the smallest rate that the images support if that is more;
    None for `review` is no review.
    """

    false_alarm: float | None = None
    review: float | None = None


def images_for(rate: float) -> int:
    """Return how many good images a false-alarm rate takes: 99 for 0.01."""
    # 1 / rate is inexact: without the small step back, 0.005 could take one image more.
    return math.ceil(1 / rate - 1e-9) - 1


def describe_needs() -> str:
    """List how many good images the usual false-alarm rates take."""
    needs = []
    for rate in COMMON_RATES:
        needs.append(f"{images_for(rate)} for {100 * rate:g} %")
    return ", ".join(needs)


def check_false_alarm_rate(rate: float | None, images: int, called: str = HELD_OUT) -> float:
    """Return the false-alarm rate to use for so many good images. Raises CalibrationError.

    None means 1 %, or the smallest rate that the images support if that is more. `called` names the
    images in messages.
    """
    if images < 1:
        raise CalibrationError(
            f"there are no {called}, so that no threshold can be set; give more good images"
        )
    smallest = 1 / (images + 1)
    if rate is None:
        return max(DEFAULT_RATE, smallest)
    check_range(rate)
    if rank_of(rate, images) > images:
        supported = math.ceil(1e4 * smallest) / 1e4
        raise CalibrationError(
            f"a false-alarm rate of {rate:g} needs {images_for(rate)} {called}, "
            f"there are {images}; give more, or --false-alarm-rate {supported:g}"
        )
    return rate


def check_rates(rates: Rates, images: int, called: str = HELD_OUT) -> Rates:
    """Return the rates to use for so many good images. Raises CalibrationError.

    `called` names the images in messages.
    """
    rate = check_false_alarm_rate(rates.false_alarm, images, called)
    if rates.review is None:
        return Rates(rate)
    check_range(rates.review, "review rate")
    smallest = smallest_review_rate(rate, images)
    # Both round to the same image just below the smallest rate.
    if rank_of(rates.review, images) >= rank_of(rate, images):
        remedy = "leave --review-rate out"
        if smallest is not None:
            remedy = f"give --review-rate {smallest:g} or more"
        raise CalibrationError(
            f"a review rate of {rates.review:g} is not above the false-alarm rate of {rate:g} by "
            f"at least one of {images} {called}; {remedy}"
        )
    return Rates(rate, rates.review)


def smallest_review_rate(false_alarm_rate: float, images: int) -> float | None:
    """Return the smallest review rate beside a false-alarm rate, rounded up; None if none is."""
    smallest = (images + 2 - rank_of(false_alarm_rate, images)) / (images + 1)
    rounded = math.ceil(1e4 * smallest - 1e-6) / 1e4
    return rounded if rounded < 1 else None


def check_range(rate: float | None, name: str = "false-alarm rate") -> None:
    """Raise CalibrationError for a rate that is not between 0 and 1; None passes."""
    if rate is not None and not 0 < rate < 1:
        raise CalibrationError(f"{name} {rate:g} is not between 0 and 1; give 0.01 for 1 %")


def set_threshold(
    scores: npt.NDArray[Any],
    false_alarm_rate: float | None = None,
    margin: float = 0.0,
    called: str = HELD_OUT,
    folds: int = 0,
    review_rate: float | None = None,
) -> Calibration:
    """Compute the threshold from scores [n] of good images, by detectors not trained on them.

    Without a false-alarm rate it is 1 %, or the smallest that n images support if that is more. The
    threshold lies at least `margin` above the score of its rank, so that rounding errors up to the
    margin reject none of the images below it. `called` names the images in messages. `folds` is the
    number of detectors that gave out-of-fold scores, which have an upper bound alone; 0 for scores
    of the detector itself. A `review_rate` sets a second, lower level, for the share of good parts
    that are reviewed or rejected. Raises CalibrationError.
    """
    n = len(scores)
    if n == 0 or not np.isfinite(scores).all():
        raise CalibrationError(
            f"{n} good scores, not all finite: no threshold can be set; check images and model"
        )
    rates = check_rates(Rates(false_alarm_rate, review_rate), n, called)
    assert rates.false_alarm is not None
    level = conformal_level(scores, rates.false_alarm, margin, folds)
    review = None
    if rates.review is not None:
        review = conformal_level(scores, rates.review, margin, folds)
    return Calibration(
        level.threshold, level.rate, level.interval, CONFIDENCE, n, folds, review=review
    )


def with_pixel_threshold(
    calibration: Calibration, peaks: npt.NDArray[Any], margin: float = 0.0
) -> Calibration:
    """Add the value of the map above which a region begins, at the rate of false alarms.

    `peaks` [n] are the largest values of the maps of the images that set the threshold. Raises
    CalibrationError if they are not finite.
    """
    if not np.isfinite(peaks).all():
        raise CalibrationError(
            "the maps of the good images are not all finite: no pixel threshold can be set; choose "
            "another engine, or build the bundle again"
        )
    rate = calibration.false_alarm_rate
    return replace(calibration, pixels=conformal_level(peaks, rate, margin, calibration.folds))


def require_different_scores(
    scores: npt.NDArray[Any], tolerance: float, called: str = HELD_OUT
) -> None:
    """Refuse scores [n] of several images that differ by no more than `tolerance`.

    Such images are most likely one image n times, from which nothing follows about other parts.
    Scores that are not finite are left to `set_threshold`. Raises CalibrationError.
    """
    if len(scores) < 2 or np.ptp(scores) > tolerance or not np.isfinite(scores).all():
        return
    raise CalibrationError(
        f"the scores of the {len(scores)} {called} are all equal within the tolerance of the "
        f"engines, as for one image many times; give images of different parts"
    )


def describe(
    calibration: Calibration, requested: float | None, called: str = HELD_OUT
) -> list[str]:
    """Describe a threshold in lines of text.

    `requested` is the rate that was given to `set_threshold`, and `called` names the images.
    """
    rate = calibration.false_alarm_rate
    images = calibration.good_images
    lines = []
    # Nothing was requested, so the caller does not know yet that the default was not possible.
    if requested is None and rate > DEFAULT_RATE:
        lines.append(
            f"note: {images} {called} support a false-alarm rate of "
            f"{rate:.1%} at best; {DEFAULT_RATE:.0%} takes {images_for(DEFAULT_RATE)}"
        )
    source = ""
    if calibration.folds:
        source = f", each scored by one of {calibration.folds} detectors trained without it"
    if calibration.scored_by is not None:
        source += f", by the scores of {calibration.scored_by}"
    lines += _moved(calibration)
    review = calibration.review
    # What the rates are of.
    computed = calibration.by_hand or calibration
    threshold, review_threshold = computed.threshold, computed.review_threshold
    lines.append(
        f"threshold {threshold:.6g} for {rate:.1%} false alarms "
        f"({_bounds(calibration, calibration.interval)}), from {images} {called}{source}"
    )
    if review is not None and review_threshold is not None:
        lines.append(
            f"review above {review_threshold:.6g}, for {review.rate:.1%} of good parts reviewed or "
            f"rejected ({_bounds(calibration, review.interval)})"
        )
    pixels = calibration.pixels
    if pixels is not None:
        lines.append(
            f"regions above {pixels.threshold:.6g} in the anomaly map, for {pixels.rate:.1%} of "
            f"good images with any ({_bounds(calibration, pixels.interval)})"
        )
    return lines


def _moved(calibration: Calibration) -> list[str]:
    """Describe thresholds that a person moved by hand; nothing is said of others."""
    by_hand = calibration.by_hand
    if by_hand is None:
        return []
    lines = [f"threshold {calibration.threshold:.6g}, moved by hand by {by_hand.person}"]
    if calibration.review_threshold != by_hand.review_threshold:
        lines.append(f"review above {calibration.review_threshold:.6g}, moved by hand")
    return [*lines, "before that, from good images:"]


def _bounds(calibration: Calibration, interval: tuple[float, float]) -> str:
    """Describe the interval of a true rate; out-of-fold scores have an upper bound alone."""
    low, high = interval
    bounds = f"between {low:.2%} and {high:.1%}"
    if calibration.folds:
        bounds = f"at most {high:.1%}"
    return f"{bounds} with {calibration.confidence:.0%} confidence"


def calibration_fault(calibration: Calibration, manifest: Manifest) -> str | None:
    """Say that no good images can have given the thresholds of a calibration, or return None.

    See `threshold_fault`; the values of the map are compared with the largest ones of good images.
    """
    faults = [threshold_fault(calibration.threshold, manifest)]
    if calibration.review is not None:
        review = calibration.review.threshold
        faults.append(_fault(review, manifest.score, manifest.score_tolerance, "review: the"))
    if calibration.pixels is not None:
        faults.append(_pixel_fault(calibration.pixels, manifest))
    for fault in faults:
        if fault is not None:
            return fault
    return None


def _pixel_fault(pixels: Level, manifest: Manifest) -> str | None:
    if "map" not in manifest.outputs:
        return "pixels: there is a pixel threshold, but the bundle gives no maps"
    spread = manifest.map_peak
    return _fault(pixels.threshold, spread, manifest.map_tolerance, "pixels: the", "map peaks")


def threshold_fault(threshold: float, manifest: Manifest) -> str | None:
    """Say that no good images can have given a threshold, or return None.

    A threshold is implausible if it is farther from the mean of the good images' scores than
    1000 times their spread. The spread is their standard deviation, at least a tenth of the mean
    and 20 times the tolerance, because few or equal images have hardly any. Beyond that distance
    no image would be anomalous, or every one, and the self-test would accept any score.
    """
    return _fault(threshold, manifest.score, manifest.score_tolerance)


def _fault(
    threshold: float, good: Spread, tolerance: float, the: str = "the", values: str = "scores"
) -> str | None:
    spread = max(good.std, 0.1 * abs(good.mean), 20 * tolerance)
    # The comparison is also false for NaN.
    if abs(threshold - good.mean) <= FARTHEST_THRESHOLD * spread:
        return None
    return (
        f"{the} threshold {threshold:.6g} is implausible, as the {values} of good images are "
        f"{good.mean:.6g} on average with a standard deviation of {good.std:.3g}"
    )
