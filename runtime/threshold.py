"""A threshold from good images alone, with a confidence interval for its false-alarm rate.

The threshold is a conformal quantile. With n held-out good scores, a threshold just above the k-th
smallest accepts a new good part with probability at least 1 - rate if k = ceil((n + 1)(1 - rate))
(split conformal: Vovk et al.; Lei et al. 2018). Given these n images, the true false-alarm rate of
that threshold has the distribution Beta(n + 1 - k, k), for every distribution of the scores.

Out-of-fold scores set the threshold in the same way, with fewer guarantees. They come from
detectors that were trained without the image, on a part of the good images, while a new part is
scored by the detector that was trained on all (cross-conformal: Vovk 2015; the jackknife of Barber
et al., "Predictive inference with the jackknife+", 2021). No theorem bounds the rate for every
method. If leaving out a fold changes no score, the rate is that of n held-out images. Usually
scores get lower with more training images, and the rate with them. So only an upper bound is
stated, the quantile of Beta(n + 1 - k, k), and the lower one is 0.
`benchmarks.studies.threshold_coverage` measures how often it holds.

Both statements are about images that are exchangeable with new ones. Images of one hour are not
exchangeable with those of next week.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline import FlawlineError
from flawline.runtime.calibration import Calibration
from flawline.runtime.manifest import Manifest

CONFIDENCE = 0.95
DEFAULT_RATE = 0.01
# Rates that messages give the necessary number of images for.
COMMON_RATES = (0.05, 0.01, 0.005)
HELD_OUT = "held-out good images"
BISECTIONS = 60
# A threshold is at most so many times the spread of the good scores away from their mean.
FARTHEST_THRESHOLD = 1000
# Allowed error of a score far from the threshold, relative to its distance from it.
FAR_TOLERANCE = 1e-3


class CalibrationError(FlawlineError):
    """The good images do not support a threshold for the requested false-alarm rate."""


def flipped(reference: Any, score: Any, threshold: float) -> Any:
    """Tell whether two scores of the same image lie on different sides of the threshold.

    Takes numbers or arrays [n], and returns bool or bool [n]. This is the one definition of a
    flipped verdict.
    """
    return (reference > threshold) != (score > threshold)


def clear_flip(reference: Any, score: Any, threshold: float, tolerance: float) -> Any:
    """Tell whether a verdict flips although the reference is not near the threshold.

    Near means within `tolerance`, the range of rounding errors. Takes numbers or arrays [n], and
    returns bool or bool [n]; a reference that is NaN is never near the threshold.
    """
    # Written so that a reference that is NaN is not near.
    near = np.abs(reference - threshold) <= tolerance
    return flipped(reference, score, threshold) & ~near


def tolerance_factor(reference: Any, threshold: float, tolerance: float) -> Any:
    """Return by what the absolute tolerances of an image are multiplied, 1 or more.

    The tolerance of a score is the larger of the absolute `tolerance` and 0.1 % of its distance to
    the threshold; the map of the image gets the same factor. Far from the threshold a score may be
    of any magnitude, and a rounding error in proportion to it decides nothing. Takes a number or an
    array [n] of reference scores, and returns float64 or float64 [n]. This is the one definition.
    """
    distance = np.abs(np.asarray(reference, np.float64) - threshold)
    return np.maximum(1.0, FAR_TOLERANCE * distance / tolerance)


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
    if _rank(rate, images) > images:
        supported = math.ceil(1e4 * smallest) / 1e4
        raise CalibrationError(
            f"a false-alarm rate of {rate:g} needs {images_for(rate)} {called}, "
            f"there are {images}; give more, or --false-alarm-rate {supported:g}"
        )
    return rate


def check_range(rate: float) -> None:
    """Raise CalibrationError for a false-alarm rate that is not between 0 and 1."""
    if not 0 < rate < 1:
        raise CalibrationError(
            f"false-alarm rate {rate:g} is not between 0 and 1; give 0.01 for 1 %"
        )


def set_threshold(
    scores: npt.NDArray[Any],
    false_alarm_rate: float | None = None,
    margin: float = 0.0,
    called: str = HELD_OUT,
    folds: int = 0,
) -> Calibration:
    """Compute the threshold from scores [n] of good images, by detectors not trained on them.

    Without a false-alarm rate it is 1 %, or the smallest that n images support if that is more. The
    threshold lies at least `margin` above the score of its rank, so that rounding errors up to the
    margin reject none of the images below it. `called` names the images in messages. `folds` is the
    number of detectors that gave out-of-fold scores, which have an upper bound alone; 0 for scores
    of the detector itself. Raises CalibrationError.
    """
    n = len(scores)
    if n == 0 or not np.isfinite(scores).all():
        raise CalibrationError(
            f"{n} good scores, not all finite: no threshold can be set; check images and model"
        )
    rate = check_false_alarm_rate(false_alarm_rate, n, called)
    rank = _rank(rate, n)
    interval = _interval(rank, n, folds)
    ascending = np.sort(scores)
    rank = max(rank, 1)
    threshold = max(_above(ascending, rank), float(ascending[rank - 1]) + margin)
    return Calibration(threshold, rate, interval, CONFIDENCE, n, folds)


def _interval(rank: int, images: int, folds: int) -> tuple[float, float]:
    """Return the interval of the true rate of a threshold above the score of this rank."""
    above = images + 1 - rank
    if folds:
        return 0.0, beta_quantile(CONFIDENCE, above, rank)
    tail = (1 - CONFIDENCE) / 2
    return beta_quantile(tail, above, rank), beta_quantile(1 - tail, above, rank)


def _rank(rate: float, images: int) -> int:
    """Return the rank, from 1, of the score that the threshold lies above.

    It exceeds the number of images if they are too few for the rate.
    """
    # 1 - rate is inexact: without the small step back, ceil could ask for one image more than there
    # is.
    return math.ceil((images + 1) * (1 - rate) - 1e-9)


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
    low, high = calibration.interval
    lines = []
    # Nothing was requested, so the caller does not know yet that the default was not possible.
    if requested is None and rate > DEFAULT_RATE:
        lines.append(
            f"note: {images} {called} support a false-alarm rate of "
            f"{rate:.1%} at best; {DEFAULT_RATE:.0%} takes {images_for(DEFAULT_RATE)}"
        )
    bounds = f"between {low:.2%} and {high:.1%}"
    source = ""
    if calibration.folds:
        bounds = f"at most {high:.1%}"
        source = f", each scored by one of {calibration.folds} detectors trained without it"
    if calibration.scored_by is not None:
        source += f", by the scores of {calibration.scored_by}"
    lines.append(
        f"threshold {calibration.threshold:.6g} for {rate:.1%} false alarms "
        f"({bounds} with {calibration.confidence:.0%} confidence), "
        f"from {images} {called}{source}"
    )
    return lines


def threshold_fault(threshold: float, manifest: Manifest) -> str | None:
    """Say that no good images can have given a threshold, or return None.

    A threshold is implausible if it is farther from the mean of the good images' scores than
    1000 times their spread. The spread is their standard deviation, at least a tenth of the mean
    and 20 times the tolerance, because few or equal images have hardly any. Beyond that distance
    no image would be anomalous, or every one, and the self-test would accept any score.
    """
    score = manifest.score
    spread = max(score.std, 0.1 * abs(score.mean), 20 * manifest.score_tolerance)
    # The comparison is also false for NaN.
    if abs(threshold - score.mean) <= FARTHEST_THRESHOLD * spread:
        return None
    return (
        f"the threshold {threshold:.6g} is implausible, as the scores of good images are "
        f"{score.mean:.6g} on average with a standard deviation of {score.std:.3g}"
    )


def _above(ascending: npt.NDArray[Any], rank: int) -> float:
    """Return a threshold above the rank-th score and below the next.

    No image lies on it, so that rounding decides nothing.
    """
    score = float(ascending[rank - 1])
    if rank < len(ascending):
        return (score + float(ascending[rank])) / 2
    return score + max(0.01 * float(ascending.std()), 1e-6 * abs(score), 1e-9)


def beta_quantile(probability: float, a: int, b: int) -> float:
    """Return the quantile of Beta(a, b) for whole a and b, by bisection on its binomial tail."""
    n = a + b - 1
    log_choose = []
    for i in range(a, n + 1):
        log_choose.append(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1))
    low = 0.0
    high = 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _binomial_tail(middle, a, n, log_choose) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _binomial_tail(p: float, least: int, n: int, log_choose: list[float]) -> float:
    """Return the probability of at least `least` successes in n trials of probability p.

    `log_choose` holds the logarithms of the binomial coefficients from `least` to n.
    """
    log_p = math.log(p)
    log_q = math.log1p(-p)
    terms = []
    for i, coefficient in enumerate(log_choose, least):
        terms.append(math.exp(coefficient + i * log_p + (n - i) * log_q))
    return sum(terms)
