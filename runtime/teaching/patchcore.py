"""Teaching PatchCore: a bank of good patches, selected and stored as in the training.

`train/methods/patchcore.py` is the training, and `train/blocks/memory_bank.py` the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from flawline.runtime.teaching import TeachError
from flawline.runtime.teaching.base import Floats, Learned, Teacher
from flawline.runtime.teaching.coreset import (
    distances_at_start,
    distances_to,
    greedy_k_centre,
    project,
)
from flawline.runtime.teaching.graph import OTHER_GRAPH, Array, TaughtGraph

# How much larger a bank becomes at most where no limit is given.
GROWTH = 2
# Queries or rows whose distances to all rows are computed together.
CHUNK = 1024

Doubles = npt.NDArray[np.float64]


class PatchCoreTeacher(Teacher):
    """Selects the bank; the two stencils subtract its mean, and each part of the search has rows.

    The settings of the record are `coreset`, a fraction of all patches or a number of rows,
    `most_rows`, what a budget allows or None, `block`, of which the rows of the graph are a
    multiple, and `part_rows`, how many of them one part of the search takes.
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
        self._biases = sorted(
            {graph.constant_name(f"/stencils.{level}/Conv", 2) for level in range(2)}
        )
        self._sizes = [len(graph.constant(name)) for name in self._biases]
        self._dim = graph.constant(self._parts[0].rows).shape[1]
        # Each stencil may have all dimensions; their results are then added.
        self._added = self._sizes[0] == self._dim
        self._neighbours = 0
        if graph.has_constant("score.neighbours"):
            self._neighbours = graph.constant("score.neighbours").shape[1]
        self._patches = np.empty((0, self._dim), np.float32)
        self._points = np.empty((0, 0), np.float32)
        self._positions = 1

    def raw(self) -> dict[str, Array]:
        zeros = {}
        for name, size in zip(self._biases, self._sizes, strict=True):
            zeros[name] = np.zeros(size, np.float32)
        return zeros

    def study(self, features: Floats) -> None:
        self._positions = features.shape[1]
        self._patches = features.reshape(-1, self._dim)
        self._points = project(self._patches, self.seed)

    def learn(self, chosen: Sequence[int]) -> Learned:
        patches = self._patches_of(chosen)
        points = self._points[patches]
        points -= points.mean(0)
        rows = self._rows(len(points))
        nearest = distances_at_start(points, self.seed)
        selected = greedy_k_centre(points, rows, nearest)
        bank = self._patches[patches[selected]]
        return self._learned(bank, f"bank: {rows} of {len(patches)} patches")

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
        both = project(np.concatenate([old, self._patches]), self.seed)
        both -= both.mean(0)
        points = both[len(old) :]
        nearest = distances_to(points, both[: len(old)])
        selected = greedy_k_centre(points, count, nearest)
        bank = np.concatenate([old, self._patches[selected]])
        note = f"bank: {len(old)} rows and {count} of {len(points)} new patches (limit {most})"
        return self._learned(bank, note)

    def _patches_of(self, chosen: Sequence[int]) -> npt.NDArray[np.int64]:
        starts = np.asarray(chosen, np.int64)[:, None] * self._positions
        return (starts + np.arange(self._positions)).reshape(-1)

    def _rows(self, patches: int) -> int:
        """Return how many of so many patches the training would select."""
        coreset = self.settings["coreset"]
        rows = int(coreset) if coreset > 1 else max(1, int(coreset * patches))
        most = self.settings["most_rows"]
        if most is not None:
            rows = min(rows, most)
        return min(rows, patches)

    def _bank(self) -> Floats:
        """Return the raw rows of the graph's bank, without those that only fill its last block."""
        rows = np.concatenate([self.graph.constant(part.rows) for part in self._parts])
        different = (rows[:-1] != rows[-1]).any(1)
        last = int(np.flatnonzero(different)[-1]) + 1 if different.any() else 0
        biases = [self.graph.constant(name) for name in self._biases]
        mean = 2 * biases[0] if self._added else np.concatenate(biases)
        bank: Floats = rows[: last + 1] - mean
        return bank

    def _learned(self, bank: Floats, note: str) -> Learned:
        exact = bank.astype(np.float64)
        mean = exact.mean(0)
        rows = self._filled((exact - mean).astype(np.float32))
        constants: dict[str, Array] = self._shifted(mean)
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
        return Learned(constants, shift, _Literal(exact), f"{note}, {size:.1f} MB")

    def _shifted(self, mean: Doubles) -> dict[str, Array]:
        """Return the biases of the stencils, which subtract the mean."""
        centre = -mean.astype(np.float32)
        if self._added:
            return dict.fromkeys(self._biases, centre / 2)
        first = self._sizes[0]
        return {self._biases[0]: centre[:first], self._biases[1]: centre[first:]}

    def _filled(self, rows: Array) -> Array:
        """Repeat the last of the rows as often as the blocks and the parts of the search need."""
        block = self.settings["block"]
        before = (len(self._parts) - 1) * self.settings["part_rows"]
        wanted = max(-(-len(rows) // block) * block, before + block)
        most = len(self._parts) * self.settings["part_rows"]
        if wanted > most:
            raise TeachError(
                f"a bank of {len(rows)} rows is more than the {most} that the graph searches; take "
                f"fewer pictures, or train with a smaller --coreset"
            )
        return np.concatenate([rows, np.repeat(rows[-1:], wanted - len(rows), 0)])

    def _ends(self, rows: int) -> list[int]:
        """Return where each part of the search ends; all but the last have the same size."""
        size = self.settings["part_rows"]
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
    """The distance of patches [P, d] to the nearest row of a bank, by differences in float64."""

    def __init__(self, bank: Doubles) -> None:
        self._bank = bank

    def __call__(self, features: Floats) -> Doubles:
        patches = features.astype(np.float64)
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
