"""Warnings that the frames of a camera are no longer like the good images of the training.

A quantity has limits at the ends of its range over the good images, which are extended by a margin.
A warning begins when more of the last frames are beyond a limit than chance explains, and at least
a third of them, and ends when half as many are. Rejected frames count as well: a change that lets
every part be rejected would otherwise never be seen.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from flawline.runtime.drift.limits import critical_count
from flawline.runtime.drift.meter import picture_difference
from flawline.runtime.drift.quantities import (
    ACROSS,
    CAUSES,
    DOWN,
    HIGH,
    LIKENESS,
    PRODUCT,
    QUANTITIES,
    REMEDIES,
    SCORE,
    SCORES,
)
from flawline.runtime.drift.reading import Reading
from flawline.runtime.drift.reference import DriftReference, Range
from flawline.runtime.image import Image

WINDOW = 80  # frames
FEWEST_FRAMES = 20
# The chance, at any frame, that one limit is found exceeded by frames that are like the good images
# and independent. There are up to 17 limits.
RATE = 1e-9
# A smaller share of the frames may be defective parts.
LEAST_SHARE = 1 / 3
# Of the critical count: from the first on, a cause may be the one that explains the others; below
# the second, a warning ends.
SUSPECTED = 1 / 3
ENDED = 1 / 2


MISSING_REASON = "the good images are too few, or differ too much from each other"


class Change(NamedTuple):
    """A warning that begins or ends, with its text."""

    cause: str
    begins: bool
    text: str


@dataclass(frozen=True)
class _Limit:
    """A limit of a quantity on one side, and which of the good values it is beyond."""

    name: str
    side: int
    value: float
    good: Range

    def exceeded(self, value: float) -> bool:
        """Tell whether a value is beyond the limit; NaN never is."""
        return value > self.value if self.side == HIGH else value < self.value

    def critical(self, frames: int) -> float:
        """Return how many of so many frames chance does not explain; infinite if it may be all."""
        count = critical_count(self.good.counted, self.good.extreme, frames, RATE)
        return math.inf if count is None else max(count, LEAST_SHARE * frames)


def _limits(name: str, good: Range) -> list[_Limit]:
    quantity = QUANTITIES[name]
    limits = []
    for side in quantity.sides:
        end, quarter = (good.high, good.upper) if side == HIGH else (good.low, good.lower)
        reach = abs(end - good.middle) + quantity.margin * abs(end - quarter)
        reach = max(reach, quantity.least_change(good.middle))
        limits.append(_Limit(name, side, good.middle + side * reach, good))
    return limits


def drift_notes(reference: DriftReference | None) -> list[str]:
    """Return log lines about what is not watched; None is a bundle without statistics."""
    if reference is None:
        return [
            f"note: drift of {', '.join(CAUSES)} is not watched: the bundle has no statistics of "
            f"its good images"
        ]
    watched = set()
    for name, good in reference.ranges.items():
        if any(math.isfinite(limit.critical(WINDOW)) for limit in _limits(name, good)):
            watched.add(QUANTITIES[name].cause)
    missing = [cause for cause in CAUSES if cause not in watched]
    if not missing:
        return []
    return [f"note: drift of {', '.join(missing)} is not watched: {MISSING_REASON}"]


def learned_notes(reference: DriftReference | None) -> list[str]:
    """Return the same for statistics that are to go into a bundle; None where there are none."""
    if reference is None:
        return [
            "note: the good images are too few, or the inspected area too small, to watch drift"
        ]
    return drift_notes(reference)


class _Frame(NamedTuple):
    """The values of a frame, and the numbers of the limits that it exceeds."""

    values: Mapping[str, float]
    beyond: list[int]


class _Suspect(NamedTuple):
    """How many frames are beyond a limit, relative to what chance explains, and its number."""

    share: float
    limit: int


@dataclass
class _Camera:
    """The last frames of a camera, and the warnings that are on."""

    counts: list[int]
    frames: deque[_Frame] = field(default_factory=deque)
    picture: Image | None = None
    # For each warning that is on, the number of the limit that it is about.
    active: dict[str, int] = field(default_factory=dict)
    names: tuple[str, ...] = ()


class DriftWatch:
    """Watches the frames of one or several cameras, each on its own."""

    def __init__(self, reference: DriftReference) -> None:
        self._ranges = reference.ranges
        self._step = reference.step
        self._limits: list[_Limit] = []
        for name, values in reference.ranges.items():
            self._limits += _limits(name, values)
        self._cameras: dict[str, _Camera] = {}

    def active(self, camera: str) -> tuple[str, ...]:
        """Return the names of the warnings that are on for a camera."""
        state = self._cameras.get(camera)
        return () if state is None else state.names

    def add(self, camera: str, reading: Reading, score: float) -> list[Change]:
        """Take the next frame of a camera; return the warnings that begin or end with it.

        A frame that shows the same part as the one before does not count.
        """
        state = self._cameras.get(camera)
        if state is None:
            state = self._cameras[camera] = _Camera([0] * len(self._limits))
        last = state.picture
        if last is not None and picture_difference(last, reading.picture) < self._step:
            return []
        state.picture = reading.picture
        self._count(state, {**reading.values, SCORE: score})
        if len(state.frames) < FEWEST_FRAMES:
            return []
        # Most frames are far from any warning.
        if not state.active and 3 * max(state.counts) < len(state.frames):
            return []
        changes = self._changes(state)
        if changes:
            state.names = tuple(cause for cause in CAUSES if cause in state.active)
        return changes

    def _count(self, state: _Camera, values: dict[str, float]) -> None:
        likeness = self._ranges.get(LIKENESS)
        if likeness is not None and values[LIKENESS] < likeness.low:
            # It is not known where something else lies.
            values[ACROSS] = values[DOWN] = math.nan
        beyond = []
        for number, limit in enumerate(self._limits):
            if limit.exceeded(values[limit.name]):
                beyond.append(number)
                state.counts[number] += 1
        state.frames.append(_Frame(values, beyond))
        if len(state.frames) > WINDOW:
            oldest = state.frames.popleft()
            for number in oldest.beyond:
                state.counts[number] -= 1

    def _changes(self, state: _Camera) -> list[Change]:
        changes = []
        found = self._found(state)
        for cause in CAUSES:
            suspect = found.get(cause)
            share = 0.0 if suspect is None else suspect.share
            if cause in state.active:
                if share < ENDED:
                    number = state.active.pop(cause)
                    changes.append(Change(cause, False, self._ended(state, cause, number)))
            elif suspect is not None and share >= 1 and not _is_explained(cause, state, found):
                state.active[cause] = suspect.limit
                changes.append(Change(cause, True, self._begun(state, cause, suspect.limit)))
        return changes

    def _found(self, state: _Camera) -> dict[str, _Suspect]:
        """Return the limit of each cause that is exceeded most."""
        frames = len(state.frames)
        shares = []
        for number, limit in enumerate(self._limits):
            shares.append(state.counts[number] / limit.critical(frames))
        found: dict[str, _Suspect] = {}
        # Those that another cause explains come last, when that one is known.
        for explained in (False, True):
            for number, limit in enumerate(self._limits):
                quantity = QUANTITIES[limit.name]
                if (quantity.explained_by is not None) != explained:
                    continue
                if quantity.explained_by in _suspected(state, found):
                    continue
                best = found.get(quantity.cause)
                if best is None or shares[number] > best.share:
                    found[quantity.cause] = _Suspect(shares[number], number)
        return found

    def _begun(self, state: _Camera, cause: str, number: int) -> str:
        limit = self._limits[number]
        quantity = QUANTITIES[limit.name]
        how = "above" if limit.side == HIGH else "below"
        return (
            f"{cause}: {quantity.label} {quantity.text(self._median(state, limit.name))}, good "
            f"images {quantity.text(limit.good.low)} to {quantity.text(limit.good.high)}: "
            f"{state.counts[number]} of the last {len(state.frames)} frames are {how} "
            f"{quantity.text(limit.value)}; {REMEDIES[cause]}"
        )

    def _ended(self, state: _Camera, cause: str, number: int) -> str:
        name = self._limits[number].name
        quantity = QUANTITIES[name]
        return (
            f"{cause}: the last {len(state.frames)} frames are like the good images again: "
            f"{quantity.label} {quantity.text(self._median(state, name))}"
        )

    def _median(self, state: _Camera, name: str) -> float:
        known = [frame.values[name] for frame in state.frames]
        finite = [value for value in known if not math.isnan(value)]
        return median(finite) if finite else math.nan


def _suspected(state: _Camera, found: Mapping[str, _Suspect]) -> set[str]:
    """Return the causes whose warnings are on, or may soon be."""
    likely = {cause for cause, suspect in found.items() if suspect.share >= SUSPECTED}
    return likely | set(state.active)


def _is_explained(cause: str, state: _Camera, found: Mapping[str, _Suspect]) -> bool:
    """Tell whether a change may come from another cause, which explains it."""
    others = _suspected(state, found) - {cause}
    return bool(others) if cause == SCORES else PRODUCT in others
