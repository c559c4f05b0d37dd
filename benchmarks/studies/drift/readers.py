"""What reads the frames of a stream of the study: a detector, or the check of drift alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flawline.benchmarks.studies.drift.subjects import Subject
from flawline.cameras import Frame
from flawline.cameras.decode import read_image
from flawline.export.graphs import evenly_spaced
from flawline.runtime.ahead import Prepared
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.drift.gauge import Gauge
from flawline.runtime.drift.learn import MOST_IMAGES, learn_reference
from flawline.runtime.drift.reading import Reading
from flawline.runtime.drift.reference import DriftReference
from flawline.runtime.engines import REFERENCE_ENGINE, EngineOptions
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Geometry, Image
from flawline.runtime.station.judge import Judge
from flawline.train import TrainError
from flawline.train.data import open_data

# The input of the check without a detector.
SIDE = 256


class Judged(NamedTuple):
    """What the check of drift gets of a frame. Without a detector, the score is NaN."""

    reading: Reading
    score: float


@dataclass(frozen=True)
class Reader:
    """Reads frames for a reference; None for a frame that cannot be judged."""

    reference: DriftReference
    graph_input: GraphInput
    method: str
    engine: str
    read: Callable[[Image], Judged | None]


@contextmanager
def detector_reader(bundle: Bundle) -> Iterator[Reader]:
    """Open a detector that reads frames as `flawline stream` does, for the block.

    Raises TrainError for a bundle without statistics.
    """
    manifest = bundle.manifest
    if manifest.drift is None:
        raise TrainError(f"bundle {bundle.path} has no statistics of its good images")
    with Detector(bundle, REFERENCE_ENGINE, EngineOptions(threads=1)) as detector:
        judge = Judge(detector)

        def read(image: Image) -> Judged | None:
            made = Prepared.of(Frame("study", 0, image), judge.prepare)
            (verdict,) = detector.judge_prepared([made])
            if verdict.reading is None:
                return None
            return Judged(verdict.reading, verdict.score)

        engine = detector.engine.description
        yield Reader(manifest.drift, manifest.graph_input, manifest.method, engine, read)


def plain_reader(subject: Subject) -> Reader:
    """Learn the statistics of a subject without a detector, and so without scores.

    Raises TrainError if there are too few images.
    """
    graph_input = GraphInput(Geometry("stretch", SIDE, SIDE))
    paths = evenly_spaced(open_data(subject.data).train_good, MOST_IMAGES)
    images = [graph_input.of_frame(read_image(path, None)) for path in paths]
    reference = learn_reference(images, np.empty(0), graph_input)
    if reference is None:
        raise TrainError(f"{subject.name}: {len(images)} good images are too few; give more")
    gauge = Gauge(reference, graph_input)

    def read(image: Image) -> Judged:
        return Judged(gauge.read(graph_input.of_frame(image)), math.nan)

    return Reader(reference, graph_input, "none", "without scores", read)
