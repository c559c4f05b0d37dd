"""A threshold from good images alone: split-conformal quantile with the interval of what it really delivers.

With n held-out good scores, a threshold just above the k-th smallest lets a new good part through with probability
at least 1 - rate if k = ceil((n + 1)(1 - rate)) (Vovk et al.; Lei et al. 2018). Given these n images, the true
false-alarm rate of that threshold is Beta(n + 1 - k, k) distributed, whatever the distribution of the scores.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline import FlawlineError
from flawline.runtime.bundle import Calibration

CONFIDENCE = 0.95
DEFAULT_RATE = 0.01


class CalibrationError(FlawlineError):
    """These good images do not support the wish; the message is one line and ends with the remedy."""


def calibrate(scores: npt.NDArray[Any], rate: float | None = None) -> Calibration:
    """The threshold for a false-alarm rate from scores [n] of good images that were not trained on.

    Without a rate it is 1 %, or the smallest that n images support where that is more: the caller says which.
    """
    n = len(scores)
    if not n or not np.isfinite(scores).all():
        raise CalibrationError(
            f"{n} good scores, not all finite: no threshold can be set; check images and model"
        )
    smallest = 1 / (n + 1)
    wanted = max(DEFAULT_RATE, smallest) if rate is None else rate
    if not 0 < wanted < 1:
        raise CalibrationError(
            f"false-alarm rate {wanted:g} is not between 0 and 1; give 0.01 for 1 %"
        )
    # 1 - smallest is inexact: without the small step back, ceil would ask for one image more than there is.
    rank = math.ceil((n + 1) * (1 - wanted) - 1e-9)
    if rank > n:
        raise CalibrationError(
            f"a false-alarm rate of {wanted:g} needs {math.ceil(1 / wanted) - 1} held-out good images, there are {n}; "
            f"give more, or --false-alarm-rate {math.ceil(1e4 * smallest) / 1e4:g}"
        )
    tail = (1 - CONFIDENCE) / 2
    interval = (
        beta_quantile(tail, n + 1 - rank, rank),
        beta_quantile(1 - tail, n + 1 - rank, rank),
    )
    return Calibration(_above(np.sort(scores), max(rank, 1)), wanted, interval, CONFIDENCE, n)


def describe(calibration: Calibration, asked: float | None) -> list[str]:
    """The threshold in words, and what the good images do not support; `asked` as it was given to `calibrate`."""
    low, high = calibration.interval
    lines = []
    if asked is None and calibration.false_alarm_rate > DEFAULT_RATE:
        lines.append(
            f"note: {calibration.good_images} held-out good images support a false-alarm rate of "
            f"{calibration.false_alarm_rate:.1%} at best; {DEFAULT_RATE:.0%} takes {math.ceil(1 / DEFAULT_RATE) - 1}"
        )
    lines.append(
        f"threshold {calibration.threshold:.6g} for {calibration.false_alarm_rate:.1%} false alarms "
        f"(between {low:.2%} and {high:.1%} with {calibration.confidence:.0%} confidence), "
        f"from {calibration.good_images} held-out good images"
    )
    return lines


def _above(ascending: npt.NDArray[Any], rank: int) -> float:
    """A threshold above the rank-th score and below the next: no image lies on it, so rounding decides nothing."""
    at = float(ascending[rank - 1])
    if rank < len(ascending):
        return (at + float(ascending[rank])) / 2
    return at + max(0.01 * float(ascending.std()), 1e-6 * abs(at), 1e-9)


def beta_quantile(probability: float, a: int, b: int) -> float:
    """Quantile of Beta(a, b) for whole a, b, by bisection on its binomial tail."""
    n = a + b - 1
    log_choose = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(a, n + 1)
    ]
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        log_p, log_q = math.log(middle), math.log1p(-middle)
        tail = sum(
            math.exp(c + i * log_p + (n - i) * log_q)
            for i, c in zip(range(a, n + 1), log_choose, strict=True)
        )
        low, high = (middle, high) if tail < probability else (low, middle)
    return (low + high) / 2
