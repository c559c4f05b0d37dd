"""Interleaved measurement: each test image is judged by every engine before the next image.

A disturbance of the machine then affects all of them in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flawline.benchmarks.frame_maps import HIGHEST_SCORE, lacks_part, map_on_frame
from flawline.benchmarks.in_flight import images_of_turn, judge_passes, warm_up
from flawline.cameras.decode import read_image
from flawline.runtime.bundle import Bundle, BundleError
from flawline.runtime.console import log
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError, EngineOptions
from flawline.runtime.image import Image
from flawline.runtime.throughput import require_batch
from flawline.runtime.verdict import Verdict
from flawline.train.data import Sample
from flawline.train.progress import Bars

# Untimed calls of each engine before the first image.
WARM_UP = 5
# Untimed seconds whenever another engine is next. The threads of the engine before it may still be
# spinning, and would slow it down.
SETTLE_S = 0.03


class EngineChoice(NamedTuple):
    """An engine by its name, and how to open it.

    `batch` None judges each image alone. A number judges so many images in one call, and as many
    calls at the same time as the engine takes: throughput mode.
    """

    name: str
    options: EngineOptions
    batch: int | None = None


# Called with an engine that could not be opened, and the reason.
LeftOut = Callable[[EngineChoice, str], None]


class JudgingError(EngineError):
    """An engine that was opened cannot judge an image; its name and precision are stated."""

    def __init__(self, message: str, engine: str, precision: str) -> None:
        super().__init__(message)
        self.engine = engine
        self.precision = precision


def log_left_out(choice: EngineChoice, reason: str) -> None:
    """Log an engine that could not be opened: its missing row must not look like no such engine."""
    mode = "" if choice.batch is None else " in throughput mode"
    log(f"note: left out {choice.name} {choice.options.precision}{mode}: {reason}")


@dataclass
class EngineRun:
    """The results of one engine on all test images.

    `scores` and `maps` ([H, W] each) have one entry per image, `times_ms` one per timed call. In
    throughput mode, with a `batch`, there is a time per image for each pass over the images of a
    turn. `maps` is empty where they are not kept.
    """

    engine: str
    precision: str
    description: str = ""
    threads: int | None = None
    streams: int | None = None
    batch: int | None = None
    times_ms: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    maps: list[npt.NDArray[np.float32]] = field(default_factory=list)


@dataclass
class Measurement:
    """The measurement of a bundle in one engine: its detector, and the results so far.

    With `keeps_maps`, the anomaly maps are results, too.
    """

    detector: Detector
    run: EngineRun
    keeps_maps: bool

    @property
    def bundle(self) -> Bundle:
        return self.detector.bundle


@contextmanager
def judging(run: EngineRun) -> Iterator[None]:
    """Raise an EngineError of the block as JudgingError, which states the engine."""
    try:
        yield
    except EngineError as error:
        raise JudgingError(str(error), run.engine, run.precision) from error


def open_measurements(
    bundle: Bundle,
    choices: Sequence[EngineChoice],
    left_out: LeftOut | None,
    keeps_maps: bool,
    stack: ExitStack,
) -> list[Measurement]:
    """Open the bundle in each engine; `stack` closes them.

    An engine that cannot be opened raises EngineError or BundleError. With `left_out`, that is
    called instead, and the error is raised only if no engine is left.
    """
    opened = []
    # What `auto` stood for: the same in throughput mode, without choosing and saying so again.
    found: dict[tuple[str, EngineOptions], tuple[str, str]] = {}
    for choice in choices:
        options = choice.options
        asked = (choice.name, replace(options, streams=None))
        name, precision = found.get(asked, (choice.name, options.precision))
        try:
            detector = Detector(bundle, name, replace(options, precision=precision))
            stack.enter_context(detector)
            found[asked] = (detector.engine.name, detector.engine.precision)
            require_batch(detector, choice.batch or 1)
        except (EngineError, BundleError) as error:
            if left_out is None:
                raise
            left_out(choice, str(error))
            continue
        engine = detector.engine
        run = EngineRun(engine.name, engine.precision, engine.description, options.threads)
        run.streams = options.streams
        run.batch = choice.batch
        opened.append(Measurement(detector, run, keeps_maps))
    if not opened:
        raise EngineError(f"no engine could be opened for {bundle.path}; see the notes above")
    return opened


def judge_samples(
    measurements: Sequence[Measurement],
    samples: Sequence[Sample],
    repeats: int,
    title: str,
    turn: int = 1,
) -> None:
    """Judge each image `repeats` times with each detector, one after the other; add the results.

    `title` is that of the progress bar. A detector's turn has `turn` images: a longer one takes
    less time in all, and a disturbance of the machine affects fewer of them. With an engine in
    throughput mode, a turn has at least the images that this needs. Raises JudgingError for a score
    that is not finite and for an engine that fails.
    """
    for measurement in measurements:
        if measurement.run.batch is not None:
            needed = images_of_turn(measurement.run.batch, measurement.run.streams)
            turn = max(turn, needed)
    # One engine alone is not disturbed by the threads of another.
    settle_s = SETTLE_S if len(measurements) > 1 else 0.0
    calls = WARM_UP
    with Bars() as progress:
        for first in range(0, len(samples), turn):
            now = samples[first : first + turn]
            # By bit depth, in which bundles may differ.
            images: dict[int | None, list[Image]] = {}
            for measurement in measurements:
                bit_depth = measurement.bundle.manifest.file_bit_depth
                if bit_depth not in images:
                    # A 16-bit image is an error if the detector was trained on 8-bit images.
                    images[bit_depth] = [read_image(sample.path, bit_depth) for sample in now]
                with judging(measurement.run):
                    _measure_turn(measurement, images[bit_depth], now, repeats, calls, settle_s)
            calls = 0
            progress(title, first + len(now), len(samples))


def settle(
    judge: Callable[[Image], object], image: Image, calls: int, seconds: float = SETTLE_S
) -> None:
    """Judge an image untimed, at least `calls` times and for at least `seconds`."""
    for _ in range(calls):
        judge(image)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        judge(image)


def _measure_turn(
    measurement: Measurement,
    images: Sequence[Image],
    samples: Sequence[Sample],
    repeats: int,
    calls: int,
    settle_s: float,
) -> None:
    """Judge the images of a turn `repeats` times, after at least `calls` untimed calls."""
    detector = measurement.detector
    run = measurement.run
    if run.batch is None:
        settle(detector, images[0], calls, settle_s)
        for image, sample in zip(images, samples, strict=True):
            for _ in range(repeats):
                verdict = detector(image)
                if verdict.milliseconds:
                    run.times_ms.append(sum(verdict.milliseconds.values()))
            _add_result(measurement, verdict, image, sample.path)
        return
    warm_up(detector, images[0], run.batch, settle_s)
    times, verdicts = judge_passes(detector, images, repeats, run.batch, measurement.keeps_maps)
    for verdict, image, sample in zip(verdicts, images, samples, strict=True):
        run.times_ms += times
        _add_result(measurement, verdict, image, sample.path)


def _add_result(measurement: Measurement, verdict: Verdict, image: Image, path: Path) -> None:
    """Add the score and the map of an image.

    A part that the fixture of the bundle did not find is rejected: it has the highest score.
    """
    run = measurement.run
    found = verdict.judged or not lacks_part(measurement.detector, image)
    if found and not verdict.judged:
        raise EngineError(
            f"{run.description} cannot judge {path}: {verdict.reason}; choose another engine "
            "or build the bundle again"
        )
    run.scores.append(verdict.score if found else HIGHEST_SCORE)
    if measurement.keeps_maps:
        run.maps.append(map_on_frame(measurement.detector, image, verdict))
