"""False warnings of good images that follow each other, compared with all others.

The good images of a training are often of batches, whose images resemble each other more than those
of other batches do. A stream that draws images at random shows none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from flawline.benchmarks.studies.drift.subjects import Subject
from flawline.cameras.decode import read_image
from flawline.runtime.drift.gauge import Gauge
from flawline.runtime.drift.learn import MOST_IMAGES, learn_reference
from flawline.runtime.drift.watch import DriftWatch
from flawline.runtime.environment import cpu_name, versions
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Image
from flawline.train import TrainError
from flawline.train.data import open_data
from flawline.train.progress import Bars

# Parts of the good images in the order of the files, each of them compared with the others.
PARTS = 4
# Images that follow each other.
BLOCK = 80
Row = dict[str, Any]


def measure_blocks(subject: Subject, graph_input: GraphInput, frames: int) -> Row:
    """Return the row of streams of the good images of a subject, without their scores.

    For each part, `frames` / PARTS of its images are shown, in blocks that begin anywhere in it.
    Raises TrainError if there are too few images.
    """
    paths = sorted(open_data(subject.data).train_good)
    images = [graph_input.of_frame(read_image(path, None)) for path in paths]
    numbers = np.arange(len(images)) * PARTS // len(images)
    found: Counter[str] = Counter()
    with Bars() as bars:
        for part in range(PARTS):
            others = [image for image, at in zip(images, numbers, strict=True) if at != part]
            shown = [image for image, at in zip(images, numbers, strict=True) if at == part]
            found.update(_warnings(others, shown, graph_input, frames // PARTS, part))
            bars(f"{subject.name} parts", part + 1, PARTS)
    return {
        "part": "blocks",
        "data": subject.name,
        "images": len(images),
        "parts": PARTS,
        "block": BLOCK,
        "frames": frames // PARTS * PARTS,
        "warnings": dict(found),
        "device": cpu_name(),
        "versions": versions(),
    }


def _warnings(
    others: Sequence[Image], shown: Sequence[Image], graph_input: GraphInput, frames: int, part: int
) -> Counter[str]:
    step = -(-len(others) // MOST_IMAGES)
    reference = learn_reference(others[::step], np.empty(0), graph_input)
    if reference is None:
        raise TrainError(f"{len(others)} good images are too few; give more")
    gauge = Gauge(reference, graph_input)
    readings = [gauge.read(image) for image in shown]
    watch = DriftWatch(reference)
    rng = np.random.default_rng((37, part))
    found: Counter[str] = Counter()
    indices: list[int] = []
    while len(indices) < frames:
        start = int(rng.integers(max(1, len(shown) - BLOCK + 1)))
        indices.extend(range(start, min(start + BLOCK, len(shown))))
    for index in indices[:frames]:
        for change in watch.add("1", readings[index], 0.0):
            found[change.cause] += change.begins
    return found
