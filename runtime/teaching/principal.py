"""Principal components of features: how they are computed, and where a graph has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flawline.runtime.teaching import OTHER_GRAPH, TeachError

if TYPE_CHECKING:
    from flawline.runtime.teaching.graph import Array, TaughtGraph

CHUNK = 1 << 14  # rows that are processed together

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


def principal_directions(
    rows: npt.NDArray[Any], count: int, chosen: Numbers | None = None
) -> Floats:
    """Return the directions [D, count] of rows [n, D], orthonormal, the largest variance first.

    They are eigenvectors of the covariance in float64. The largest entry of each is positive, so
    that they follow from the rows. The rows may be mapped from disk; `chosen` are the numbers of
    those that count, by default all.
    """
    if chosen is None:
        chosen = np.arange(len(rows))
    total = np.zeros(rows.shape[1])
    for start in range(0, len(chosen), CHUNK):
        total += rows[chosen[start : start + CHUNK]].sum(0, dtype=np.float64)
    mean = total / len(chosen)
    covariance = np.zeros((rows.shape[1], rows.shape[1]))
    for start in range(0, len(chosen), CHUNK):
        centred = rows[chosen[start : start + CHUNK]] - mean
        covariance += centred.T @ centred
    # In the order of growing variance.
    _, vectors = np.linalg.eigh(covariance)
    directions = vectors[:, ::-1][:, :count]
    largest = directions[np.abs(directions).argmax(0), np.arange(count)]
    found: Floats = (directions * np.sign(largest)).astype(np.float32)
    return found


def components_of(rows: Floats, directions: Floats, chosen: Numbers) -> Floats:
    """Return the components [m, count] of the chosen rows of [n, D], in memory."""
    components = np.empty((len(chosen), directions.shape[1]), np.float32)
    for start in range(0, len(chosen), CHUNK):
        components[start : start + CHUNK] = rows[chosen[start : start + CHUNK]] @ directions
    return components


class Directions:
    """The directions in a graph that adds two levels of features, after its share of each.

    `known` are those of the graph, [dimensions, count]. The first dimensions are of the first
    level, the last ones of the second, and both may have a part in one between. Raises TeachError
    for a graph that is not as expected.
    """

    def __init__(self, graph: TaughtGraph, dimensions: int) -> None:
        self._names = [graph.constant_name(share_node(level), 1) for level in range(2)]
        first, second = (graph.constant(name)[:, :, 0, 0].T for name in self._names)
        shared = len(first) + len(second) - dimensions
        if shared < 0 or len(second) < shared:
            raise TeachError(OTHER_GRAPH)
        self.dimensions = dimensions
        self._of_first = len(first)
        self._of_second = len(second)
        self.known: Floats = np.concatenate([first, second[shared:]])

    def constants(self, directions: Floats) -> dict[str, Array]:
        """Return the constants of the graph that hold these directions [dimensions, any number]."""
        first = directions[: self._of_first]
        second = directions[len(directions) - self._of_second :]
        shares = [np.ascontiguousarray(part.T)[:, :, None, None] for part in (first, second)]
        return dict(zip(self._names, shares, strict=True))


def share_node(level: int) -> str:
    """Return the name of the node that multiplies the features of a level by its directions."""
    return f"/stencils.{level}/stencils.{level}.1/Conv"
