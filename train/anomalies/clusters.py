"""Exact k-means of grey levels: the clusters of a saliency map with 256 values.

Clusters of numbers on a line are intervals, so dynamic programming over the 256 bins of the
histogram finds the optimum (Wang and Song, "Ckmeans.1d.dp", 2011). It needs no start values and
always returns the same clusters.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LEVELS = 256


def cluster_levels(values: npt.NDArray[np.uint8], k: int) -> npt.NDArray[np.uint8]:
    """Return the cluster of every value, in the shape of `values`: 0 has the lowest centre.

    The sum of the squared distances to the cluster centres is as small as k clusters allow. Where
    there are fewer than k different values, each is a cluster of its own. Raises ValueError for a
    k below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    weights = np.bincount(values.ravel(), minlength=LEVELS).astype(np.float64)
    present = np.flatnonzero(weights)
    table = np.zeros(LEVELS, np.uint8)
    starts = _interval_starts(present.astype(np.float64), weights[present], min(k, len(present)))
    for cluster, start in enumerate(starts):
        table[present[start] :] = cluster
    return table[values]


def _interval_starts(
    points: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], k: int
) -> list[int]:
    """Return the index of the first point of each of the k best intervals of sorted points [n]."""
    cost = _interval_costs(points, weights)
    best = cost[0]  # of the points up to each one, in one interval
    choices = []
    for _ in range(k - 1):
        before = np.concatenate([[np.inf], best[:-1]])
        total = before[:, None] + cost
        choice = total.argmin(0)
        best = total[choice, np.arange(len(points))]
        choices.append(choice)
    starts = []
    last = len(points) - 1
    for choice in reversed(choices):
        start = int(choice[last])
        starts.append(start)
        last = start - 1
    return [0, *reversed(starts)]


def _interval_costs(
    points: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the squared distances to the mean of the points i to j, [i, j]; infinite for j < i."""
    sums = []
    for power in (0, 1, 2):
        running = np.concatenate([[0.0], np.cumsum(weights * points**power)])
        sums.append(running[None, 1:] - running[:-1, None])
    count, total, squares = sums
    below = np.tri(len(points), k=-1, dtype=bool)
    count = np.where(below, 1.0, count)
    return np.where(below, np.inf, squares - total**2 / count)
