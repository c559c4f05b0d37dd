"""How features and values of one grid are taken to another, as matrices of a line."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
# Neighbours on either side over which a feature is averaged, on its own grid.
REACH = 1


def resampled_means(source: int, target: int) -> Floats:
    """Return the matrix [target, source] that averages over neighbours, then resizes.

    Each sample becomes the mean of those beside it, fewer at the ends. A larger line is then
    interpolated with half-pixel centres, and a smaller one takes means of what it covers.
    """
    places = np.arange(source)
    near = np.abs(places[:, None] - places) <= REACH
    means = near / near.sum(1, keepdims=True)
    resize = _interpolation(source, target) if target >= source else _means(source, target)
    matrix: Floats = (resize @ means).astype(np.float32)
    return matrix


def cells(source: int, target: int) -> npt.NDArray[np.int64]:
    """Return for each sample of a line of `target` the one of `source` that covers its centre."""
    return (2 * np.arange(target, dtype=np.int64) + 1) * source // (2 * target)


def cells_matrix(source: int, target: int) -> Floats:
    """Return `cells` as a matrix [target, source] of zeros and ones."""
    return np.eye(source, dtype=np.float32)[cells(source, target)]


def _interpolation(source: int, target: int) -> npt.NDArray[np.float64]:
    centres = ((np.arange(target) + 0.5) * source / target - 0.5).clip(0, source - 1)
    lower = np.minimum(centres.astype(np.int64), max(source - 2, 0))
    upper = np.minimum(lower + 1, source - 1)
    share = centres - lower
    matrix = np.zeros((target, source))
    lines = np.arange(target)
    np.add.at(matrix, (lines, lower), 1 - share)
    np.add.at(matrix, (lines, upper), share)
    return matrix


def _means(source: int, target: int) -> npt.NDArray[np.float64]:
    """Return the share of each sample in the interval that a sample of the target covers."""
    starts = np.arange(target)[:, None] * source / target
    ends = starts + source / target
    places = np.arange(source)
    covered = np.minimum(ends, places + 1) - np.maximum(starts, places)
    covered = covered.clip(0)
    normalised: npt.NDArray[np.float64] = covered / covered.sum(1, keepdims=True)
    return normalised
