"""A conformal quantile of good images, with a confidence interval for the rate above it.

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

from flawline.runtime.calibration import Level

CONFIDENCE = 0.95
BISECTIONS = 60


def conformal_level(
    values: npt.NDArray[Any], rate: float, margin: float = 0.0, folds: int = 0
) -> Level:
    """Return the level that a share `rate` of further good images is above.

    `values` [n] are finite and of good images that the detector was not trained on. The level lies
    at least `margin` above the value of its rank. `folds` is the number of detectors that gave
    out-of-fold values, which have an upper bound alone; 0 for values of the detector itself. The
    caller has checked that n values support the rate: `rank_of` is n at most.
    """
    n = len(values)
    rank = rank_of(rate, n)
    interval = _interval(rank, n, folds)
    ascending = np.sort(values)
    rank = max(rank, 1)
    threshold = max(_above(ascending, rank), float(ascending[rank - 1]) + margin)
    return Level(threshold, rate, interval)


def _interval(rank: int, images: int, folds: int) -> tuple[float, float]:
    """Return the interval of the true rate of a threshold above the score of this rank."""
    above = images + 1 - rank
    if folds:
        return 0.0, beta_quantile(CONFIDENCE, above, rank)
    tail = (1 - CONFIDENCE) / 2
    return beta_quantile(tail, above, rank), beta_quantile(1 - tail, above, rank)


def rank_of(rate: float, images: int) -> int:
    """Return the rank, from 1, of the score that the threshold lies above.

    It exceeds the number of images if they are too few for the rate.
    """
    # 1 - rate is inexact: without the small step back, ceil could ask for one image more than there
    # is.
    return math.ceil((images + 1) * (1 - rate) - 1e-9)


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
