"""How features and values of one grid are taken to another, as matrices of a line."""

from __future__ import annotations

import cv2
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
    way = cv2.INTER_LINEAR if target >= source else cv2.INTER_AREA
    resize = cv2.resize(np.eye(source), (source, target), interpolation=way)
    matrix: Floats = (resize @ means).astype(np.float32)
    return matrix


def cells(source: int, target: int) -> npt.NDArray[np.int64]:
    """Return for each sample of a line of `target` the one of `source` that covers its centre."""
    return (2 * np.arange(target, dtype=np.int64) + 1) * source // (2 * target)


def cells_matrix(source: int, target: int) -> Floats:
    """Return `cells` as a matrix [target, source] of zeros and ones."""
    return np.eye(source, dtype=np.float32)[cells(source, target)]
