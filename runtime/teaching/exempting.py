"""Exempting positions: which patches of false rejects are stored, and how near to them is near.

For methods whose heads are trained in steps. Only the false rejects decide about it, and no
defective part, so that the good parts that set the thresholds stay independent of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log
from flawline.runtime.teaching import OTHER_GRAPH, TeachError
from flawline.runtime.teaching.appendable import FEWEST_EXEMPTED
from flawline.runtime.teaching.bank_of_patches import INNER, PatchBank
from flawline.runtime.teaching.base import Floats, Learned, Teacher
from flawline.runtime.teaching.coreset import distances_to, greedy_k_centre
from flawline.runtime.teaching.exempting_graph import ExemptingGraph
from flawline.runtime.teaching.features import Features, Head
from flawline.runtime.teaching.graph import Constants
from flawline.runtime.teaching.resampling import cells

# Rows that a bank has at most where no limit is given: each takes time of every frame.
MOST_ROWS = 512
# The smallest squared radius, as a share of the largest squared length of a centred patch: within
# less, the rounding of float32 would change shares of exemption.
SMALLEST_RADIUS = 1 / 256
# Halvings of the range of values in which a level is searched.
HALVINGS = 16

Doubles = npt.NDArray[np.float64]


class ExemptingTeacher(Teacher):
    """Stores patches of false rejects; positions with features close to one no longer reject.

    An input that the bundle rejects has a level, the highest at which cutting off its values lets
    its score be that of an average good part. Its harmless patches are those with a value above.
    `threads` are those of ONNX Runtime.
    """

    appends: ClassVar[bool] = True

    def __init__(self, graph: ExemptingGraph, bundle: Bundle, threads: int | None) -> None:
        super().__init__(graph, {}, seed=0)
        self._shape = graph.feature_shape
        self._bank = graph.bank
        self._threshold = bundle.calibration.threshold
        self._target = bundle.manifest.score.mean
        # Inputs of the graph that belong to one picture.
        self._per_picture = bundle.manifest.graph_input.inputs_per_frame
        self._threads = threads
        self._packed = np.empty((0, 1, 0), np.float32)
        _, rows, columns = self._shape
        lines = cells(rows, graph.value_shape[-2])
        # Of each value, which patch covers it.
        self._patch_of = (lines[:, None] * columns + cells(columns, graph.value_shape[-1])).ravel()

    def raw(self) -> Constants:
        return {}

    def study(self, features: Floats) -> None:
        pictures = features.reshape(-1, self._per_picture, features.shape[2])
        self._packed = _different(pictures).reshape(-1, 1, features.shape[2])

    def learn(self, chosen: Sequence[int]) -> Learned:
        raise NotImplementedError

    def known(self) -> Learned:
        return self._learned(self._bank, "")

    def append(self, limit: int | None) -> Learned:
        """Add those harmless patches that are farthest from the bank and from each other.

        The bank has at most `limit` rows, by default MOST_ROWS more than it has. Raises TeachError
        for a limit that leaves no room, and if there are no harmless patches.
        """
        old = self._bank
        most = len(old.rows) + MOST_ROWS if limit is None else limit
        if most <= len(old.rows):
            raise TeachError(
                f"--bank-limit {most}: {len(old.rows)} patches are exempted already; give a larger "
                f"one"
            )
        harmless, values = self._harmless()
        rejected = len(np.unique(np.nonzero(harmless)[0] // self._per_picture))
        if rejected == 0:
            raise TeachError(
                "the bundle rejects none of the false rejects, at the threshold that it has now; "
                "there is nothing to exempt"
            )
        if rejected < FEWEST_EXEMPTED:
            raise TeachError(
                f"the bundle rejects only one of the false rejects, copies not counted, and it "
                f"takes {FEWEST_EXEMPTED} to see how much the same thing differs; give more of them"
            )
        bank = old if len(old.rows) else self._first_bank(harmless)
        patches, pictures = self._patches(bank, harmless, values)
        radius = _radius(patches, pictures)
        smallest = SMALLEST_RADIUS * float(np.square(patches).sum(1).max())
        if radius < smallest:
            log(
                "note: most of the false rejects hardly differ, as pictures of one part do, and "
                "what is exempted has to be like them; give pictures of different parts"
            )
            radius = smallest
        known = bank.rows.astype(np.float32)
        rows = _rows(patches, known, most - len(old.rows), INNER * radius)
        covered = float((distances_to(patches, rows) <= INNER * radius).mean())
        new = bank.with_rows(rows.astype(np.float64), np.full(len(rows), radius))
        note = (
            f"exempted: {len(old.rows)} patches and {len(rows)} of {len(patches)} new harmless "
            f"ones (limit {most}), which are like {covered:.0%} of these"
        )
        return self._learned(new, note)

    def _learned(self, bank: PatchBank, note: str) -> Learned:
        constants = bank.constants()
        channels, height, width = self._shape
        size = channels * height * width

        def lowered(packed: Floats) -> Doubles:
            (row,) = packed
            share = bank.share(row[:size].reshape(channels, -1).T)
            return bank.lowered(row[size:].astype(np.float64), share[self._patch_of])

        facts = {"exempted_patches": str(len(bank.rows))}
        return Learned(constants, None, lowered, note, facts=facts)

    def _features(self) -> Floats:
        """Return the features of all patches, float32 [inputs, P, d]."""
        channels, height, width = self._shape
        packed = self._packed[:, 0, : channels * height * width]
        features: Floats = packed.reshape(len(packed), channels, -1).transpose(0, 2, 1)
        return features

    def _harmless(self) -> tuple[npt.NDArray[np.bool_], Floats]:
        """Return which patches are harmless, and the largest value of each, [inputs, P].

        Values are those that the bank lowers already.
        """
        channels, height, width = self._shape
        without = self._learned(PatchBank.without_rows(channels), "")
        features = Features(self._packed, (1, 1), self._per_picture)
        has_map = "map" in self.graph.outputs
        head = Head(self.graph.head(without.constants), features, without, has_map, self._threads)
        known = self.known()
        harmless = np.zeros((len(self._packed), height * width), bool)
        largest = np.full(harmless.shape, -np.inf, np.float32)
        for number, packed in enumerate(self._packed):
            values = known.distances(packed).astype(np.float32)
            np.maximum.at(largest[number], self._patch_of, values)
            level = self._level(head, packed, values)
            harmless[number] = largest[number] > level
        return harmless, largest

    def _level(self, head: Head, packed: Floats, values: Floats) -> float:
        """Return the highest level at which the values of an input could be cut off."""
        features = packed[0, : -len(values)]

        def score(level: float) -> float:
            cut = np.concatenate([features, np.minimum(values, np.float32(level))])
            return head(cut[None])[0]

        low, high = float(values.min()), float(values.max())
        if score(high) <= self._threshold:
            return high
        if score(low) > score(high):
            # What is lower there is no more ordinary.
            raise TeachError(OTHER_GRAPH)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if score(middle) > self._target:
                high = middle
            else:
                low = middle
        return low

    def _first_bank(self, harmless: npt.NDArray[np.bool_]) -> PatchBank:
        """Return a bank without rows, with the value of ordinary positions of the false rejects.

        Its mean is that of harmless patches: the closer features and rows are to zero, the less is
        lost to rounding.
        """
        values = []
        for packed, rejecting in zip(self._packed, harmless, strict=True):
            values.append(packed[0, -len(self._patch_of) :][~rejecting[self._patch_of]])
        cap = float(np.median(np.concatenate(values)))
        mean = self._features()[harmless].mean(0, dtype=np.float64)
        return replace(PatchBank.without_rows(self._shape[0]), mean=mean, cap=cap)

    def _patches(
        self, bank: PatchBank, harmless: npt.NDArray[np.bool_], values: Floats
    ) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Return the centred features of harmless patches, and of which picture each is.

        Those with the largest values come first.
        """
        found = self._features()[harmless] - bank.mean
        inputs = np.nonzero(harmless)[0]
        order = np.argsort(-values[harmless], kind="stable")
        return found[order].astype(np.float32), inputs[order] // self._per_picture


def _rows(patches: Floats, known: Floats, most: int, inner: float) -> Floats:
    """Return those of the patches that are farthest from known rows and from each other.

    They are as many as it takes for each patch to be within the squared distance `inner` of a row,
    and at most `most`.
    """
    nearest = np.full(len(patches), np.inf, np.float32)
    if len(known):
        nearest = distances_to(patches, known)
    chosen = greedy_k_centre(patches, min(most, len(patches)), nearest.copy())
    for count, row in enumerate(chosen):
        # The next one is the farthest of all.
        if nearest[row] <= inner:
            return patches[chosen[:count]]
        new = patches[row : row + 1]
        np.minimum(nearest, distances_to(patches, new), out=nearest)
    return patches[chosen]


def _different(pictures: Floats) -> Floats:
    """Return pictures [n, ...] without copies, whose patches would be nearer than other ones."""
    hashes = [hashlib.sha256(picture.tobytes()).digest() for picture in pictures]
    return pictures[[place for place, one in enumerate(hashes) if one not in hashes[:place]]]


def _radius(patches: Floats, pictures: npt.NDArray[np.int64]) -> float:
    """Return the squared distance at which half of the pictures are exempted by the others.

    A picture is so as soon as each of its patches is that near to one of another picture.
    """
    farthest = []
    for picture in np.unique(pictures):
        own = pictures == picture
        farthest.append(distances_to(patches[own], patches[~own]).max())
    return float(np.median(farthest))
