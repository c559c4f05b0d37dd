"""How much less a sequence says than as many independent values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# A shorter sequence does not show its dependence.
SHORTEST = 20
MOST_LAGS = 80


def variance_inflation(values: npt.NDArray[Any]) -> float:
    """Return by which factor dependence raises the variance of a mean of such values; at least 1.

    `values` [n] are in their order. It is 1 + 2 * the sum of their autocorrelations, up to the
    first that chance explains (2 / sqrt(n)), of ranks, so that single odd values count no more than
    others. 1 for values that are all equal and for fewer than 20.
    """
    count = len(values)
    if count < SHORTEST:
        return 1.0
    ranks = _ranks(values)
    ranks -= ranks.mean()
    total = float(ranks @ ranks)
    if total == 0:
        return 1.0
    chance = 2 / count**0.5
    inflation = 1.0
    for lag in range(1, min(count // 4, MOST_LAGS) + 1):
        correlation = float(ranks[lag:] @ ranks[:-lag]) / total
        if correlation < chance:
            break
        inflation += 2 * correlation
    return inflation


def _ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the ranks of values; equal values have the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middle = ends - (counts - 1) / 2
    return np.asarray(middle[places], np.float64)
