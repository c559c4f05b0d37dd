"""Confidence intervals of the bundle report: of a counted rate and of the threshold.

Both follow from quantiles of the beta distribution and hold for every distribution of the scores.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.runtime.conformal import CONFIDENCE, beta_quantile

# Probability that is left outside of a two-sided interval on each side.
TAIL = (1 - CONFIDENCE) / 2


def rate_interval(count: int, total: int) -> tuple[float, float]:
    """Return the interval of the true rate, with CONFIDENCE, when `count` of `total` were counted.

    This is the exact interval of Clopper and Pearson (1934).
    """
    # No rate is below 0 or above 1, so these ends need no quantile.
    low = 0.0
    if count > 0:
        low = beta_quantile(TAIL, count, total - count + 1)
    high = 1.0
    if count < total:
        high = beta_quantile(1 - TAIL, count + 1, total - count)
    return low, high


def threshold_interval(
    scores: npt.NDArray[Any], false_alarm_rate: float
) -> tuple[float | None, float | None]:
    """Return the interval, with CONFIDENCE, of the threshold for exactly this false-alarm rate.

    `scores` [n] are those of held-out good images. With the k-th smallest score as the threshold,
    the true false-alarm rate follows Beta(n + 1 - k, k) (see `runtime.threshold`). The score is
    certainly too low a threshold where that rate is above `false_alarm_rate`, and too high where it
    is below. An end is None where n images are too few to bound the threshold on that side.
    """
    ascending = np.sort(scores)
    n = len(scores)
    if not n or not 0 < false_alarm_rate < 1:
        return None, None

    def lowest_rate(rank: int) -> float:
        return beta_quantile(TAIL, n + 1 - rank, rank)

    def highest_rate(rank: int) -> float:
        return beta_quantile(1 - TAIL, n + 1 - rank, rank)

    # Both rates fall with the rank, so that bisection finds the first rank that satisfies a bound.
    ranks = range(1, n + 1)
    too_low = bisect_left(ranks, True, key=lambda rank: lowest_rate(rank) < false_alarm_rate)
    not_too_high = bisect_left(ranks, True, key=lambda rank: highest_rate(rank) <= false_alarm_rate)
    low = None
    if too_low > 0:
        low = float(ascending[too_low - 1])
    high = None
    if not_too_high < n:
        high = float(ascending[not_too_high])
    return low, high


def images_for_upper_bound(false_alarm_rate: float) -> int:
    """Return how many held-out good images give the threshold of this rate an upper bound."""
    return math.ceil(math.log(TAIL) / math.log1p(-false_alarm_rate))
