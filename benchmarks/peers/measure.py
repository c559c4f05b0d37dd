"""Both sides judge the same images on the same machine, in alternating turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flawline.benchmarks.labels import labels_of
from flawline.benchmarks.measure.timing import percentiles
from flawline.benchmarks.peers.process import Judged, Peer, PeerError
from flawline.cameras.decode import read_image
from flawline.export.graphs import evenly_spaced
from flawline.runtime.detector import Detector
from flawline.runtime.environment import cpu_name, versions
from flawline.train import metrics
from flawline.train.data import data_name, open_data
from flawline.train.progress import Bars

# Untimed seconds at the beginning of a turn: the threads of the other side may still be spinning.
SETTLE_S = 0.05

Row = dict[str, Any]


def compare(
    detector: Detector, peer: Peer, data: Path, most_images: int | None, repeats: int
) -> Row:
    """Return the row of a comparison on the test images of a data set.

    Args:
        detector: our side; it resizes a decoded image and runs its graph.
        peer: the other side, which does the same in its process. Neither time includes decoding.
        data: the data set. Its images have both kinds, or the AUROCs are None.
        most_images: at most so many of them, evenly spaced; None for all.
        repeats: timed calls of each image and side.

    Raises PeerError, and DataError for unsuitable data.
    """
    data_set = open_data(data)
    labels = labels_of(data_set)
    count = len(data_set.test) if most_images is None else most_images
    numbers = evenly_spaced(range(len(data_set.test)), count)
    if not numbers:
        raise PeerError(f"{data} has no test images to compare on; see --data")
    ours: list[Judged] = []
    theirs: list[Judged] = []
    with Bars() as bars:
        for done, number in enumerate(numbers, 1):
            path = data_set.test[number].path
            ours.append(_judge(detector, path, repeats))
            theirs.append(peer.judge(path, repeats, SETTLE_S))
            bars("images", done, len(numbers))
    chosen = labels[numbers]
    row: Row = {
        "data": data_name(data),
        "images": len(numbers),
        "defective_images": int(chosen.sum()),
        "repeats": repeats,
        "device": cpu_name(),
        "versions": versions(),
        "ours": {**_facts(detector), **_side(ours, chosen)},
        "theirs": {**peer.facts, **_side(theirs, chosen)},
    }
    row["ratio"] = round(row["theirs"]["p50_ms"] / row["ours"]["p50_ms"], 2)
    return row


def _judge(detector: Detector, path: Path, repeats: int) -> Judged:
    image = read_image(path, detector.bundle.manifest.file_bit_depth)
    verdict = detector(image)
    end = time.perf_counter() + SETTLE_S
    while time.perf_counter() < end:
        detector(image)
    milliseconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        verdict = detector(image)
        milliseconds.append(1e3 * (time.perf_counter() - start))
    if verdict.reason is not None:
        raise PeerError(f"the bundle cannot judge {path}: {verdict.reason}; see --bundle")
    return Judged(verdict.score, milliseconds)


def _facts(detector: Detector) -> Row:
    manifest = detector.bundle.manifest
    geometry = manifest.geometry
    return {
        "method": manifest.method,
        "backbone": manifest.backbone,
        "input": f"{geometry.width}x{geometry.height}",
        "engine": detector.engine.description,
        "model_sha256": detector.bundle.model_sha256(detector.engine.precision)[:16],
    }


def _side(judged: Sequence[Judged], labels: metrics.Labels) -> Row:
    """Return the speed and the accuracy of one side, from its raw scores."""
    times: list[float] = []
    for one in judged:
        times += one.milliseconds
    auroc = metrics.auroc(labels, np.array([one.score for one in judged]))
    row: Row = dict(percentiles(times))
    row["image_auroc"] = None if np.isnan(auroc) else round(auroc, 4)
    return row
