"""Teaching PaDiM: the Gaussian of each position, estimated and stored as in the training.

`train/methods/padim.py` is the training and the graph. The channels that were drawn stay those of
the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.runtime.teaching.base import Floats, Learned, Teacher
from flawline.runtime.teaching.graph import Array, TaughtGraph

# Positions whose covariances are computed together.
CHUNK = 128

Doubles = npt.NDArray[np.float64]


class PaDiMTeacher(Teacher):
    """Estimates mean and covariance; the graph subtracts the mean and multiplies by a factor.

    The factor L of a position has L L' = the inverse covariance. The setting of the record is
    `ridge`, which is added to the diagonal of each covariance.
    """

    def __init__(self, graph: TaughtGraph, settings: dict[str, Any], seed: int) -> None:
        super().__init__(graph, settings, seed)
        self._mean = graph.constant_name("/centre/Sub", 1)
        self._factor = graph.constant_name("/whiten/MatMul", 1)
        self._features = np.empty((0, 0, 0), np.float32)

    def raw(self) -> dict[str, Array]:
        return {}

    def study(self, features: Floats) -> None:
        self._features = features

    def learn(self, chosen: Sequence[int]) -> Learned:
        positions, dim = self._features.shape[1:]
        mean = np.empty((positions, dim))
        inverse = np.empty((positions, dim, dim))
        ridge = self.settings["ridge"] * np.eye(dim)
        for start in range(0, positions, CHUNK):
            part = slice(start, start + CHUNK)
            offsets = self._features[chosen, part].astype(np.float64).transpose(1, 0, 2)
            mean[part] = offsets.mean(1)
            offsets -= mean[part, None]
            covariance = offsets.transpose(0, 2, 1) @ offsets / max(len(chosen) - 1, 1)
            inverse[part] = np.linalg.inv(covariance + ridge)
        inverse = (inverse + inverse.transpose(0, 2, 1)) / 2
        factor = np.linalg.cholesky(inverse).astype(np.float32)
        constants = {self._mean: mean.T.astype(np.float32), self._factor: factor}
        size = sum(value.nbytes for value in constants.values()) / 1e6
        note = f"{positions} Gaussians of {dim} channels, {size:.1f} MB"
        return Learned(constants, None, _Literal(mean, inverse), note)


class _Literal:
    """The Mahalanobis distance of each position, by the quadratic form in float64."""

    def __init__(self, mean: Doubles, inverse: Doubles) -> None:
        self._mean = mean
        self._inverse = inverse

    def __call__(self, features: Floats) -> Doubles:
        offset = features.astype(np.float64) - self._mean
        squared = np.einsum("pi,pij,pj->p", offset, self._inverse, offset)
        distances: Doubles = np.sqrt(np.maximum(squared, 0))
        return distances
