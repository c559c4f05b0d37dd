"""Greedy k-centre in numpy: the algorithm and the numbers of `train/blocks/coreset.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.runtime.teaching.torch_random import TorchRandom

# Dimensions in which distances are compared (Johnson and Lindenstrauss), as in the authors' code.
PROJECTED = 128
# Random rows whose mean distance replaces the distance to a first centre.
STARTS = 10
POOL = 2048  # far rows among which several are chosen in turn
CHUNK = 1 << 12  # rows that are processed together

Floats = npt.NDArray[np.float32]


def project(features: npt.NDArray[Any], seed: int) -> Floats:
    """Project rows [n, D] at random to float32 [n, min(D, 128)].

    Distances are preserved approximately. The features may be mapped from disk.
    """
    rows, dim = features.shape
    matrix = np.eye(dim, dtype=np.float32)
    if dim > PROJECTED:
        normal = TorchRandom(seed).normal(dim * PROJECTED)
        matrix = normal.reshape(dim, PROJECTED) / np.float32(PROJECTED**0.5)
    points = np.empty((rows, matrix.shape[1]), np.float32)
    for start in range(0, rows, CHUNK):
        part = slice(start, start + CHUNK)
        points[part] = np.asarray(features[part], np.float32) @ matrix
    return points


def distances_at_start(points: Floats, seed: int) -> Floats:
    """Return what takes the place of the squared distance of points [n, d] to a first centre."""
    starts = points[TorchRandom(seed).first_of_permutation(len(points), STARTS)]
    squares = _squares(starts)
    mean = np.empty(len(points), np.float32)
    for first in range(0, len(points), CHUNK):
        part = points[first : first + CHUNK]
        squared = _squares(part)[:, None] - 2 * (part @ starts.T) + squares
        mean[first : first + CHUNK] = np.sqrt(np.maximum(squared, 0)).mean(1)
    return np.square(mean)


def distances_to(points: Floats, centres: Floats) -> Floats:
    """Return the squared distance of points [n, d] to the closest of the centres [k, d]."""
    nearest = np.full(len(points), np.inf, np.float32)
    squares = _squares(points)
    for start in range(0, len(centres), CHUNK):
        part = centres[start : start + CHUNK]
        _lower(nearest, points, squares, part, _squares(part))
    return nearest


def greedy_k_centre(
    points: Floats,
    rows: int,
    nearest: Floats,
    progress: Callable[[int], None] | None = None,
) -> npt.NDArray[np.int64]:
    """Select rows of `points` [n, d] greedily: indices [rows] in the order of choice.

    `nearest` [n] are squared distances to what is selected before, and is changed. No row is
    selected twice. It is exactly the greedy choice, at less cost: see `train/blocks/coreset.py`.
    `progress` is called with the number of rows that are selected.
    """
    total = len(points)
    squares = _squares(points)
    selected: list[int] = []
    size = min(total, POOL)
    while len(selected) < rows:
        far = _largest(nearest, size)
        bound = -1.0
        if size < total:
            bound = float(nearest[far[-1]])
        done = len(selected)
        for index in _choose(points[far], nearest[far], bound, rows - done):
            selected.append(int(far[index]))
        new = selected[done:]
        _lower(nearest, points, squares, points[new], squares[new])
        nearest[new] = -1.0
        if progress is not None:
            progress(len(selected))
    return np.array(selected, np.int64)


def _squares(points: Floats) -> Floats:
    squares: Floats = np.einsum("ij,ij->i", points, points)
    return squares


def _largest(values: Floats, count: int) -> npt.NDArray[np.int64]:
    """Return the indices of the largest values, in descending order."""
    if count < len(values):
        chosen = np.argpartition(values, len(values) - count)[-count:]
    else:
        chosen = np.arange(len(values))
    return chosen[np.argsort(-values[chosen], kind="stable")]


def _choose(pool: Floats, nearest: Floats, bound: float, most: int) -> Iterator[int]:
    """Yield the greedy choice within a pool, while its farthest row is at least `bound` away."""
    squares = _squares(pool)
    nearest = nearest.copy()
    to_new = np.empty_like(nearest)
    for count in range(most):
        index = int(nearest.argmax())
        if count and float(nearest[index]) < bound:
            return
        np.matmul(pool, pool[index], out=to_new)
        to_new *= -2
        to_new += squares
        to_new += squares[index]
        np.maximum(to_new, 0, out=to_new)
        np.minimum(nearest, to_new, out=nearest)
        nearest[index] = -1.0
        yield index


def _lower(
    nearest: Floats, points: Floats, squares: Floats, centres: Floats, offsets: Floats
) -> None:
    """Lower `nearest` [n] in place to the squared distance to the closest of the centres.

    `squares` [n] and `offsets` [k] are the squared norms of the points and of the centres.
    """
    doubled = np.ascontiguousarray(-2 * centres.T)
    for start in range(0, len(points), CHUNK):
        part = slice(start, start + CHUNK)
        product = points[part] @ doubled
        product += offsets
        closest = product.min(1)
        closest += squares[part]
        np.maximum(closest, 0, out=closest)
        np.minimum(nearest[part], closest, out=nearest[part])
