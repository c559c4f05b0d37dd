"""How fine the detail of a frame is, compared with what its coarse detail suggests.

Parts with other structures have finer or coarser detail, in focus and out of it. A linear model of
the good images says how fine it is expected to be: from how coarse detail is spread over scales and
directions, which neither the light nor a little blur changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flawline.runtime.drift.meter import FINENESS_SIZE, STRUCTURE_SIZE, Vector
from flawline.runtime.drift.numbers import numbers_of, shortened
from flawline.runtime.strict_json import StrictReader

# A structure counts as one this many standard deviations from the mean at most: a linear model
# does not hold far from what it was fitted to.
FARTHEST = 2.5
# Added to the number of images: few or equal ones support no large weights.
RIDGE = 10.0
LEAST_SPREAD = 1e-3
# Parts of the good images, each of them predicted from the others.
PARTS = 10


@dataclass(frozen=True)
class ExpectedFineness:
    """The fineness that the structure of coarse detail lets expect, both as of `Measured`.

    `mean` and `spread` are those of the structures of good images, 5 numbers each. The expected
    fineness is `level`, 2 numbers, and `weights`, 5x2 row after row, times the distances from the
    mean in spreads.
    """

    mean: tuple[float, ...]
    spread: tuple[float, ...]
    weights: tuple[float, ...]
    level: tuple[float, ...]

    def excess(self, fineness: Vector, structure: Vector) -> Vector:
        """Return how much finer the detail of a frame is than expected, in octaves."""
        distances = _distances(structure, np.array(self.mean), np.array(self.spread))
        weights = np.array(self.weights).reshape(STRUCTURE_SIZE, FINENESS_SIZE)
        return np.asarray(fineness - self.level - distances @ weights, np.float64)

    def to_json(self) -> dict[str, Any]:
        """Return the fields for the manifest."""
        return {
            "mean": list(self.mean),
            "spread": list(self.spread),
            "weights": list(self.weights),
            "level": list(self.level),
        }


def fineness_from_json(content: Mapping[str, Any] | None, where: str) -> ExpectedFineness | None:
    """Read what `to_json` returned, None for None; `where` is in front of messages.

    Raises SchemaError.
    """
    if content is None:
        return None
    reader = StrictReader(content, where)
    mean = numbers_of(reader, reader.take("mean", list), STRUCTURE_SIZE)
    spread = numbers_of(reader, reader.take("spread", list), STRUCTURE_SIZE)
    weights = numbers_of(reader, reader.take("weights", list), STRUCTURE_SIZE * FINENESS_SIZE)
    level = numbers_of(reader, reader.take("level", list), FINENESS_SIZE)
    reader.finish()
    if min(spread) <= 0:
        reader.refuse("spread has a number that is not above 0")
    return ExpectedFineness(mean, spread, weights, level)


def fit_fineness(fineness: Vector, structures: Vector) -> ExpectedFineness:
    """Fit the model to good images: fineness [n, 2], structures [n, 5]."""
    mean = structures.mean(0)
    spread = np.maximum(structures.std(0), LEAST_SPREAD)
    level = fineness.mean(0)
    distances = _distances(structures, mean, spread)
    squares = distances.T @ distances + RIDGE * np.eye(STRUCTURE_SIZE)
    weights = np.linalg.solve(squares, distances.T @ (fineness - level))
    return ExpectedFineness(
        shortened(mean), shortened(spread), shortened(weights.ravel()), shortened(level)
    )


def excess_of_left_out(fineness: Vector, structures: Vector) -> Vector:
    """Return the excess of each good image, [n, 2], with the model of others; see `fit_fineness`.

    Images that follow each other are left out together, because they may be similar.
    """
    count = len(fineness)
    parts = np.arange(count) * min(PARTS, count) // count
    found: list[Vector] = []
    for part in range(int(parts[-1]) + 1):
        others = parts != part
        model = fit_fineness(fineness[others], structures[others])
        for index in np.flatnonzero(~others):
            found.append(model.excess(fineness[index], structures[index]))
    return np.stack(found)


def _distances(structures: Vector, mean: Vector, spread: Vector) -> Vector:
    return np.clip((structures - mean) / spread, -FARTHEST, FARTHEST)
