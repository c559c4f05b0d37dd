"""False warnings of stationary numbers that depend on those before them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flawline.runtime.drift.quantities import LIKENESS, QUANTITIES, SCORE, TEXTURE
from flawline.runtime.drift.reading import Reading
from flawline.runtime.drift.reference import PICTURE_BYTES, DriftReference, Range
from flawline.runtime.drift.watch import DriftWatch
from flawline.runtime.environment import cpu_name, versions

Row = dict[str, Any]
Numbers = npt.NDArray[np.float64]
FRAMES = 5000
GOOD_IMAGES = (20, 100, 300)
NAMES = tuple(name for name in QUANTITIES if name != TEXTURE)
LEVEL = 100.0


class Process(NamedTuple):
    """A stationary process of standard normal numbers, or of such with heavier tails.

    `batch` numbers share a part of their variance, `share`; `memory` is the number of frames after
    which the correlation of an autoregressive process is 1/e.
    """

    name: str
    memory: float = 0.0
    batch: int = 0
    share: float = 0.0
    freedom: int | None = None

    def numbers(self, rng: np.random.Generator, count: int) -> Numbers:
        """Return so many numbers that follow each other."""
        if self.freedom is not None:
            return rng.standard_t(self.freedom, count)
        noise = rng.normal(size=count)
        if self.batch:
            batches = rng.normal(size=count // self.batch + 2)
            start = rng.integers(self.batch)
            slow = np.repeat(batches, self.batch)[start : start + count]
            return math.sqrt(self.share) * slow + math.sqrt(1 - self.share) * noise
        if not self.memory:
            return noise
        factor = math.exp(-1 / self.memory)
        values = np.empty(count)
        value = rng.normal()
        for index in range(count):
            value = factor * value + math.sqrt(1 - factor**2) * noise[index]
            values[index] = value
        return values


PROCESSES = (
    Process("independent"),
    Process("independent, t with 5 degrees of freedom", freedom=5),
    Process("autoregressive, memory of 20 frames", memory=20),
    Process("autoregressive, memory of 200 frames", memory=200),
    Process("batches of 200 frames, half of the variance", batch=200, share=0.5),
    Process("batches of 1000 frames, half of the variance", batch=1000, share=0.5),
)


def simulate(streams: int) -> list[Row]:
    """Return a row for each process and number of good images."""
    rows = []
    with _any_change_matters():
        for process in PROCESSES:
            for good in GOOD_IMAGES:
                rows.append(_simulate(process, good, streams))
    return rows


@contextmanager
def _any_change_matters() -> Iterator[None]:
    """Let the smallest change of a quantity matter, which depends on its unit, within the block."""
    former = dict(QUANTITIES)
    for name, quantity in former.items():
        QUANTITIES[name] = dataclasses.replace(quantity, least=0.0, least_share=0.0)
    try:
        yield
    finally:
        QUANTITIES.update(former)


def _simulate(process: Process, good: int, streams: int) -> Row:
    begun = 0
    with_warning = 0
    on = 0
    for stream in range(streams):
        rng = np.random.default_rng((41, good, stream))
        # The images of the training are from all times.
        ranges = {}
        for name in NAMES:
            single = Process("", freedom=process.freedom)
            ranges[name] = Range.of(_scaled(name, single.numbers(rng, good)))
        reference = DriftReference(ranges, 0.0, bytes(PICTURE_BYTES))
        found, frames_on = _run(reference, process, rng)
        begun += found
        with_warning += found > 0
        on += frames_on
    return {
        "part": "simulation",
        "process": process.name,
        "good_images": good,
        "quantities": len(NAMES),
        "streams": streams,
        "frames": streams * FRAMES,
        "warnings": begun,
        "streams_with_warning": with_warning,
        "share_on": on / (streams * FRAMES),
        "device": cpu_name(),
        "versions": versions(),
    }


def _run(reference: DriftReference, process: Process, rng: np.random.Generator) -> tuple[int, int]:
    """Return the warnings of a stream, and the frames with one."""
    watch = DriftWatch(reference)
    series = {name: _scaled(name, process.numbers(rng, FRAMES)) for name in NAMES}
    pictures = [np.full((64, 64), 255 * number, np.uint8) for number in range(2)]
    begun = 0
    on = 0
    for index in range(FRAMES):
        values = {name: float(numbers[index]) for name, numbers in series.items()}
        score = values.pop(SCORE)
        for change in watch.add("1", Reading(values, pictures[index % 2]), score):
            begun += change.begins
        on += bool(watch.active("1"))
    return begun, on


def _scaled(name: str, numbers: Numbers) -> Numbers:
    """Return numbers at the level of a quantity."""
    return 0.9 + 0.02 * numbers if name == LIKENESS else LEVEL + numbers
