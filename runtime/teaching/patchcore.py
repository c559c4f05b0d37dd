"""Teaching PatchCore: a bank of good patches, selected and stored as in the training.

`train/methods/patchcore.py` is the training, and `train/blocks/memory_bank.py` the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from flawline.runtime.teaching import OTHER_GRAPH, TeachError
from flawline.runtime.teaching.base import Floats, Learned, Teacher
from flawline.runtime.teaching.coreset import (
    distances_at_start,
    distances_to,
    greedy_k_centre,
    project,
)
from flawline.runtime.teaching.graph import Array, TaughtGraph
from flawline.runtime.teaching.principal import (
    Directions,
    components_of,
    principal_directions,
    share_node,
)

# How much larger a bank becomes at most where no limit is given.
GROWTH = 2
# Queries or rows whose distances to all rows are computed together.
CHUNK = 1024

Doubles = npt.NDArray[np.float64]


class PatchCoreTeacher(Teacher):
    """Selects the bank; the two stencils subtract its mean, and each part of the search has rows.

    The settings of the record are `coreset`, a fraction of all patches or a number of rows,
    `most_rows`, what a budget allows or None, `block`, of which the rows of the graph are a
    multiple, and `part_rows`, how many of them one part of the search takes. `dimensions`, those of
    the features, is there where the rows are principal components of them.
    """

    appends: ClassVar[bool] = True

    def __init__(self, graph: TaughtGraph, settings: dict[str, Any], seed: int) -> None:
        super().__init__(graph, settings, seed)
        self._parts: list[_Part] = []
        while graph.has_node(f"/nearest/search.{len(self._parts)}/Gemm"):
            self._parts.append(_Part(graph, len(self._parts)))
        if not self._parts:
            raise TeachError(OTHER_GRAPH)
        # Equal biases are stored once.
        self._directions: Directions | None = None
        if "dimensions" in settings:
            self._directions = Directions(graph, settings["dimensions"])
        self._biases = sorted({graph.constant_name(node, 2) for node in self._centred()})
        self._sizes = [len(graph.constant(name)) for name in self._biases]
        self._dim = graph.constant(self._parts[0].rows).shape[1]
        # Each stencil may have all dimensions; their results are then added.
        self._added = self._sizes[0] == self._dim
        self._neighbours = 0
        if graph.has_constant("score.neighbours"):
            self._neighbours = graph.constant("score.neighbours").shape[1]
        # In all dimensions, of which the rows of the bank may be components.
        self._raw_dim = self._dim if self._directions is None else self._directions.dimensions
        self._patches = np.empty((0, self._raw_dim), np.float32)
        self._points = np.empty((0, 0), np.float32)
        self._positions = 1

    def _centred(self) -> list[str]:
        """Return the names of the nodes that subtract the mean."""
        if self._directions is not None:
            return [share_node(level) for level in range(2)]
        return [f"/stencils.{level}/Conv" for level in range(2)]

    def raw(self) -> dict[str, Array]:
        constants: dict[str, Array] = {}
        for name, size in zip(self._biases, self._sizes, strict=True):
            constants[name] = np.zeros(size, np.float32)
        if self._directions is not None:
            # With one direction for each dimension, the graph gives the dimensions themselves.
            constants = dict.fromkeys(self._biases, np.zeros(self._raw_dim, np.float32))
            each = np.eye(self._raw_dim, dtype=np.float32)
            constants.update(self._directions.constants(each))
        return constants

    def study(self, features: Floats) -> None:
        self._positions = features.shape[1]
        self._patches = features.reshape(-1, self._raw_dim)
        if self._directions is None:
            self._points = project(self._patches, self.seed)

    def learn(self, chosen: Sequence[int]) -> Learned:
        patches = self._patches_of(chosen)
        directions = None
        if self._directions is not None:
            directions = principal_directions(self._patches, self._dim, patches)
            points = project(components_of(self._patches, directions, patches), self.seed)
        else:
            points = self._points[patches]
        points -= points.mean(0)
        rows = self._rows(len(points))
        nearest = distances_at_start(points, self.seed)
        selected = greedy_k_centre(points, rows, nearest)
        bank = self._compared(patches[selected], directions)
        return self._learned(bank, f"bank: {rows} of {len(patches)} patches", directions)

    def _compared(self, patches: npt.NDArray[np.int64], directions: Floats | None) -> Floats:
        """Return what is compared of patches: all dimensions, or components along directions."""
        if directions is None:
            return self._patches[patches]
        return components_of(self._patches, directions, patches)

    @property
    def _known_directions(self) -> Floats | None:
        return None if self._directions is None else self._directions.known

    def known(self) -> Learned:
        directions = self._known_directions
        distances = _Literal(self._bank().astype(np.float64), directions)
        return Learned({}, -self._mean(), distances, "", directions)

    def append(self, limit: int | None) -> Learned:
        """Add to the bank those patches that are farthest from it and from each other.

        As many are added as the training would select from so many patches, and so few that the
        bank has at most `limit` rows; None allows twice as many as it has. Raises TeachError for a
        limit that leaves no room.
        """
        old = self._bank()
        most = GROWTH * len(old) if limit is None else limit
        count = min(self._rows(len(self._patches)), most - len(old))
        if count < 1:
            raise TeachError(
                f"--bank-limit {most}: the bank has {len(old)} rows already; give a larger one, or "
                f"teach a new bank with --source"
            )
        # Components of other directions than those of the bank would not be comparable.
        directions = self._known_directions
        patches = self._compared(np.arange(len(self._patches)), directions)
        both = project(np.concatenate([old, patches]), self.seed)
        both -= both.mean(0)
        points = both[len(old) :]
        nearest = distances_to(points, both[: len(old)])
        selected = greedy_k_centre(points, count, nearest)
        bank = np.concatenate([old, patches[selected]])
        note = f"bank: {len(old)} rows and {count} of {len(points)} new patches (limit {most})"
        return self._learned(bank, note, directions)

    def _patches_of(self, chosen: Sequence[int]) -> npt.NDArray[np.int64]:
        starts = np.asarray(chosen, np.int64)[:, None] * self._positions
        return (starts + np.arange(self._positions)).reshape(-1)

    def _rows(self, patches: int) -> int:
        """Return how many of so many patches the training would select."""
        coreset = self.setting("coreset")
        rows = int(coreset) if coreset > 1 else max(1, int(coreset * patches))
        most = self.setting("most_rows")
        if most is not None:
            rows = min(rows, most)
        return min(rows, patches)

    def _bank(self) -> Floats:
        """Return the raw rows of the graph's bank, without those that only fill its last block."""
        rows = np.concatenate([self.graph.constant(part.rows) for part in self._parts])
        different = (rows[:-1] != rows[-1]).any(1)
        last = int(np.flatnonzero(different)[-1]) + 1 if different.any() else 0
        bank: Floats = rows[: last + 1] + self._mean()
        return bank

    def _mean(self) -> Floats:
        """Return what the stencils of the graph subtract."""
        biases = [self.graph.constant(name) for name in self._biases]
        mean: Floats = -2 * biases[0] if self._added else -np.concatenate(biases)
        return mean

    def _learned(self, bank: Floats, note: str, directions: Floats | None = None) -> Learned:
        exact = bank.astype(np.float64)
        mean = exact.mean(0)
        rows = self._filled((exact - mean).astype(np.float32))
        constants: dict[str, Array] = self._shifted(mean)
        if self._directions is not None and directions is not None:
            constants.update(self._directions.constants(directions))
        first = 0
        for part, last in zip(self._parts, self._ends(len(rows)), strict=True):
            constants.update(part.constants(rows[first:last]))
            first = last
        if self._neighbours:
            if self._neighbours > len(bank):
                raise TeachError(
                    f"a bank of {len(bank)} rows has fewer than the {self._neighbours} neighbours "
                    f"that re-weight the score; take more pictures"
                )
            table = _nearest_rows(bank, self._neighbours)
            constants["score.neighbours"] = self._filled(table)
            if self.graph.has_constant("score.rows"):
                constants["score.rows"] = rows
        size = sum(value.nbytes for value in constants.values()) / 1e6
        shift = -mean.astype(np.float32)
        distances = _Literal(exact, directions)
        return Learned(constants, shift, distances, f"{note}, {size:.1f} MB", directions)

    def _shifted(self, mean: Doubles) -> dict[str, Array]:
        """Return the biases of the stencils, which subtract the mean."""
        centre = -mean.astype(np.float32)
        if self._added:
            return dict.fromkeys(self._biases, centre / 2)
        first = self._sizes[0]
        return {self._biases[0]: centre[:first], self._biases[1]: centre[first:]}

    def _filled(self, rows: Array) -> Array:
        """Repeat the last of the rows as often as the blocks and the parts of the search need."""
        block = self.setting("block")
        before = (len(self._parts) - 1) * self.setting("part_rows")
        wanted = max(-(-len(rows) // block) * block, before + block)
        most = len(self._parts) * self.setting("part_rows")
        if wanted > most:
            raise TeachError(
                f"a bank of {len(rows)} rows is more than the {most} that the graph searches; take "
                f"fewer pictures, or train with a smaller --coreset"
            )
        return np.concatenate([rows, np.repeat(rows[-1:], wanted - len(rows), 0)])

    def _ends(self, rows: int) -> list[int]:
        """Return where each part of the search ends; all but the last have the same size."""
        size = self.setting("part_rows")
        return [size * (number + 1) for number in range(len(self._parts) - 1)] + [rows]


class _Part:
    """The constants of one part of the search."""

    def __init__(self, graph: TaughtGraph, number: int) -> None:
        scope = f"/nearest/search.{number}"
        self.rows = graph.constant_name(f"{scope}/Gemm", 1)
        self._squares = graph.constant_name(f"{scope}/Gemm", 2)
        self._shape = graph.constant_name(f"{scope}/Reshape", 1)
        self._block = int(graph.constant(self._shape)[2])

    def constants(self, rows: Floats) -> dict[str, Array]:
        exact = rows.astype(np.float64)
        squares = np.einsum("ij,ij->i", exact, exact)
        return {
            self.rows: rows,
            self._squares: squares.astype(np.float32),
            self._shape: np.array([-1, len(rows) // self._block, self._block]),
        }


class _Literal:
    """The distance of patches [P, d] to the nearest row of a bank, by differences in float64.

    The rows are components along the directions, if these are given.
    """

    def __init__(self, bank: Doubles, directions: Floats | None) -> None:
        self._bank = bank
        self._directions = directions

    def __call__(self, features: Floats) -> Doubles:
        patches = features.astype(np.float64)
        if self._directions is not None:
            patches = patches @ self._directions
        products = patches @ self._bank.T
        nearest = (np.square(self._bank).sum(1) - 2 * products).argmin(1)
        distances: Doubles = np.linalg.norm(patches - self._bank[nearest], axis=1)
        return distances


def _nearest_rows(bank: Floats, count: int) -> npt.NDArray[np.int64]:
    """Return the indices [M, count] of the rows nearest to each row [M, D], itself first."""
    table = np.empty((len(bank), count), np.int64)
    squares = np.einsum("ij,ij->i", bank, bank)
    for start in range(0, len(bank), CHUNK):
        part = bank[start : start + CHUNK]
        squared = squares - 2 * (part @ bank.T)
        # The row itself comes first, even if another row is equal.
        squared[np.arange(len(part)), start + np.arange(len(part))] = -np.inf
        nearest = np.argpartition(squared, count - 1)[:, :count]
        order = np.take_along_axis(squared, nearest, 1).argsort(1)
        table[start : start + CHUNK] = np.take_along_axis(nearest, order, 1)
    return table
