"""Vectors of a step from stored patch features, and their scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MEASURED_IMAGES = 64  # images on which the deviation of the features is measured


def draw_vectors(features: Array, chosen: Array, count: int | None, seed: tuple[int, int]) -> Array:
    """Return the vectors [n, D] of a step from features [images, positions, D].

    chosen: indices of the images of the step, [k]. count: how many vectors are drawn from them in
    all, as many of each image and at least one; None takes all.
    """
    return draw_positions(features, chosen, count, seed)[0]


def draw_positions(
    features: Array, chosen: Array, count: int | None, seed: tuple[int, int]
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Return what `draw_vectors` does, and the positions [n] of the vectors."""
    positions, dim = features.shape[1:]
    if count is None:
        all_positions = np.tile(np.arange(positions), len(chosen))
        return features[chosen].reshape(-1, dim), all_positions
    of_each = max(1, count // len(chosen))
    drawn = np.random.default_rng(seed).integers(positions, size=(len(chosen), of_each))
    return features[chosen[:, None], drawn].reshape(-1, dim), drawn.ravel()


def spread_indices(images: int) -> Array:
    """Return the indices of the images on which the deviation is measured, int64."""
    return np.linspace(0, images - 1, min(MEASURED_IMAGES, images)).astype(int)


def mean_deviation(features: Array) -> float:
    """Return the standard deviation of features [images, positions, D], the mean over D."""
    vectors = features[spread_indices(len(features))].reshape(-1, features.shape[-1])
    return float(vectors.std(0).mean())
