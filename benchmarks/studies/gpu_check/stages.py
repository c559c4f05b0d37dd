"""The stages at which an engine is timed at batch 1, from its graph alone to a camera's frame."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flawline.benchmarks.measure.sessions import InferenceCall
from flawline.benchmarks.measure.timing import percentiles
from flawline.benchmarks.studies.gpu_check.device_calls import OnDevice
from flawline.benchmarks.studies.gpu_check.measure import Row, checked_row
from flawline.cameras import Frame
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError, EngineOptions
from flawline.runtime.golden import Golden
from flawline.runtime.image import Image
from flawline.runtime.timing import time_calls

# Stage -> what is timed. The score always ends on the host.
STAGES = {
    "engine": "a prepared image on the GPU",
    "host": "a prepared image on the host, to score and map on the host",
    "camera": "a camera's frame on the host to the verdict, prepared by the CPU",
    "source": "a camera's frame on the GPU, prepared by the graph",
    "source_camera": "a camera's frame on the host to the verdict, prepared by the graph",
}
# Untimed calls before each stage: kernels are compiled, graphs recorded and clocks raised.
SETTLE_S = 0.3
FEWEST_SETTLING = 3
SECONDS = 0.7


class Stage(NamedTuple):
    """A stage of STAGES, the call that it times, and the results that the call should give."""

    name: str
    call: InferenceCall
    golden: Golden


# The description of what is measured, with each of its stages.
Stages = Generator[tuple[str, Stage], None, None]


def stages_on_images(images: Bundle, frames: Bundle, name: str, options: EngineOptions) -> Stages:
    """Yield the stages of an engine on the bundle for prepared images; it is open until the end.

    `frames` is the bundle of the same network for a camera's frames. Raises EngineError.
    """
    source = frames.manifest.source
    # For the type checker: the study wrote it.
    assert source is not None
    golden = frames.golden()
    pictures = np.stack([source.picture(frame) for frame in golden.images])
    with closing(Detector(images, name, options, accept_size=True)) as detector:
        yield from _on_device(detector, "engine")
        engine = detector.engine
        yield engine.description, Stage("host", engine, images.golden())
        call = FromCamera(detector)
        yield engine.description, Stage("camera", call, replace(golden, images=pictures))


def stages_on_frames(frames: Bundle, name: str, options: EngineOptions) -> Stages:
    """Yield the stages of an engine on the bundle for a camera's frames. Raises EngineError."""
    with closing(Detector(frames, name, options, accept_size=True)) as detector:
        yield from _on_device(detector, "source")
        call = FromCamera(detector)
        yield detector.engine.description, Stage("source_camera", call, frames.golden())


def _on_device(detector: Detector, stage: str) -> Stages:
    """Yield the stage with inputs in the memory of the device, if the engine has one."""
    engine: Any = detector.engine
    if engine.has_device_memory:
        yield engine.description, Stage(stage, OnDevice(engine), detector.bundle.golden())


class FromCamera:
    """Judges the frames of a camera, one per call: score and, where there is one, map."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    def __call__(self, frames: Image) -> Sequence[NDArray[Any]]:
        (image,) = frames
        verdict = self._detector.judge(Frame("camera", 0, image))
        if not verdict.judged:
            raise EngineError(f"{self._detector.engine.description}: {verdict.reason}")
        outputs = [np.array([verdict.score], np.float32)]
        if verdict.anomaly_map is not None:
            outputs.append(verdict.anomaly_map)
        return outputs


def measure_stage(stage: Stage, spread: float) -> Row:
    """Return times and drift of a stage; drift is relative to `spread`."""
    row = checked_row(stage.name, stage.call, 1, stage.golden, spread)
    # The same array in each call, which is uploaded once where images stay on the GPU.
    call = partial(stage.call, stage.golden.images[:1])
    _settle(call)
    times = percentiles(time_calls(call, warm_up=0, seconds=SECONDS))
    return {"stage": stage.name, "drift": row["drift"], "finite": row["finite"], **times}


def _settle(call: Callable[[], object]) -> None:
    end = time.monotonic() + SETTLE_S
    number = 0
    while number < FEWEST_SETTLING or time.monotonic() < end:
        call()
        number += 1
