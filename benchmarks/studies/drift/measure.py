"""Streams of good frames, as they are and after changes, and the warnings that they give."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flawline.benchmarks.perturbations import perturb
from flawline.benchmarks.studies.drift.readers import Judged, Reader
from flawline.benchmarks.studies.drift.subjects import Subject
from flawline.benchmarks.train_bundle import train_bundle
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.console import log
from flawline.runtime.drift.gauge import Gauge
from flawline.runtime.drift.learn import learn_reference
from flawline.runtime.drift.quantities import FOCUS, LIGHT, POSITION, PRODUCT, SCORE
from flawline.runtime.drift.reference import DriftReference
from flawline.runtime.drift.watch import DriftWatch
from flawline.runtime.environment import cpu_name, versions
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Geometry, Image
from flawline.runtime.load import read_cpu, share_of_others
from flawline.train import TrainError
from flawline.train.data.demo import PRODUCTS, render
from flawline.train.progress import Bars

BLUR_AND_NOISE = "blur 2 and noise"
# Each change of a frame, its strength, and the warning that it asks for. The first of each kind are
# those that a stream must name; the others show how small a change is seen.
CHANGES = (
    ("gain", 0.7, LIGHT),
    ("gain", 1.3, LIGHT),
    ("blur", 2.0, FOCUS),
    ("shift", 8.0, POSITION),
    ("gain", 0.85, LIGHT),
    ("gain", 1.15, LIGHT),
    ("vignette", 0.3, LIGHT),
    ("colour temperature", 1.1, LIGHT),
    ("blur", 1.0, FOCUS),
    ("shift", 3.0, POSITION),
    # A lens out of focus does not blur the noise of the camera. The strength is that of the noise.
    (BLUR_AND_NOISE, 1.0, FOCUS),
    (BLUR_AND_NOISE, 2.0, FOCUS),
)
REQUIRED = CHANGES[:4]
# Frames within which a change must be named, and good frames before it.
ALLOWED = 100
BEFORE = 200
ROUNDS = 300
Row = dict[str, Any]


def measure_changes(
    subject: Subject,
    subjects: Sequence[Subject],
    reader: Reader,
    seed: int,
    frames: int,
    streams: int,
) -> list[Row]:
    """Return the rows of the good frames of a subject, and of each change.

    The other `subjects` are other products.
    """
    reference = reader.reference
    rows = []
    with Bars() as bars:
        facts = _facts(subject, reader, seed)
        numbers = subject.numbers(frames)
        good = _judged(reader, subject, numbers, None, bars)
        found = _warnings(reference, good)
        different = len(set(numbers))
        row = {"part": "good", "frames": frames, "different": different, "warnings": dict(found)}
        rows.append({**facts, **row})
        log(f"{subject.name}: {sum(found.values())} warnings in {frames} good frames")
        for name, strength, cause in CHANGES:
            numbers = subject.numbers(min(ALLOWED, subject.different))
            change = _change(name, strength)
            changed = _judged(reader, subject, numbers, change, bars)
            case = {"change": name, "strength": strength, "cause": cause}
            rows.append({**facts, **case, **_named(reference, good, changed, cause, streams)})
        for other in subjects:
            if other.name == subject.name:
                continue
            numbers = other.numbers(min(ALLOWED, other.different))
            changed = _judged(reader, other, numbers, None, bars)
            case = {"change": other.name, "strength": None, "cause": PRODUCT}
            rows.append({**facts, **case, **_named(reference, good, changed, PRODUCT, streams)})
    return rows


def bundle_of(subject: Subject, flags: Sequence[str], folder: Path, seed: int) -> Bundle:
    """Return the bundle of a subject; it is trained if it is not there. Raises TrainError."""
    path = folder / "bundles" / subject.name
    if (path / "manifest.json").exists():
        log(f"{path} is there already; delete it to train again")
        return read_bundle(path)
    if train_bundle(subject.data, seed, flags, path, folder / f"{subject.name}.pt") is None:
        raise TrainError(f"{subject.name}: the export failed; see the message above")
    return read_bundle(path)


def _facts(subject: Subject, reader: Reader, seed: int) -> Row:
    reference = reader.reference
    scores = reference.ranges.get(SCORE)
    return {
        "data": subject.name,
        "method": reader.method,
        "seed": seed,
        "good_images": reference.ranges["brightness"].images,
        "good_scores": 0 if scores is None else scores.images,
        "independent": {name: good.independent for name, good in reference.ranges.items()},
        "position": reference.picture is not None,
        "engine": reader.engine,
        "device": cpu_name(),
        "versions": versions(),
    }


def _change(name: str, strength: float) -> Callable[[Image], Image]:
    def change(image: Image) -> Image:
        if name == BLUR_AND_NOISE:
            image = np.asarray(perturb(image, "blur", 2.0), np.uint8)
            return np.asarray(perturb(image, "noise", strength), np.uint8)
        return np.asarray(perturb(image, name, strength), np.uint8)

    return change


def _judged(
    reader: Reader,
    subject: Subject,
    numbers: Sequence[int],
    change: Callable[[Image], Image] | None,
    bars: Bars,
) -> list[Judged]:
    """Judge frames of a subject as a stream does. Equal frames are judged once."""
    known: dict[int, Judged] = {}
    for done, number in enumerate(numbers, 1):
        if number not in known:
            image = subject.frame(number)
            if change is not None:
                image = change(image)
            judged = reader.read(image)
            if judged is not None:
                known[number] = judged
        bars(f"{subject.name} frames", done, len(numbers))
    return [known[number] for number in numbers if number in known]


def _warnings(reference: DriftReference, frames: Iterable[Judged]) -> Counter[str]:
    watch = DriftWatch(reference)
    found: Counter[str] = Counter()
    for frame in frames:
        for change in watch.add("1", frame.reading, frame.score):
            found[change.cause] += change.begins
    return found


def _named(
    reference: DriftReference,
    good: Sequence[Judged],
    changed: Sequence[Judged],
    cause: str,
    streams: int,
) -> Row:
    """Return after how many changed frames the cause is named, and what else is.

    Half of the streams begin with changed frames, the others with good ones.
    """
    waits = []
    others: Counter[str] = Counter()
    for stream in range(streams):
        rng = np.random.default_rng((31, stream))
        before = rng.integers(0, len(good), BEFORE if stream % 2 else 0)
        after = rng.permutation(len(changed))
        if len(changed) < ALLOWED:
            after = rng.integers(0, len(changed), ALLOWED)
        watch = DriftWatch(reference)
        for index in before:
            watch.add("1", good[index].reading, good[index].score)
        wait = None
        for number, index in enumerate(after, 1):
            for change in watch.add("1", changed[index].reading, changed[index].score):
                if change.begins and change.cause == cause:
                    wait = number
                elif change.begins:
                    others[change.cause] += 1
        if wait is not None:
            waits.append(wait)
    return {
        "part": "change",
        "streams": streams,
        "named": len(waits),
        "frames": [int(value) for value in np.percentile(waits, (50, 100))] if waits else None,
        "others": dict(others),
    }


def measure_time() -> Row:
    """Time what the check adds to a frame of 640x480, on one thread."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        return _measure_time()
    finally:
        cv2.setNumThreads(threads)


def _measure_time() -> Row:
    graph_input = GraphInput(Geometry("stretch", 256, 256))
    start = read_cpu()
    row: Row = {"part": "time", "device": cpu_name(), "versions": versions()}
    for name in ("bearing", "weave"):
        assert name in PRODUCTS
        frames = [cv2.resize(render(name, None, seed)[0], (640, 480)) for seed in range(20)]
        images = [graph_input.of_frame(frame) for frame in frames]
        scores = np.random.default_rng(0).normal(size=20)
        reference = learn_reference(images, scores, graph_input)
        assert reference is not None
        gauge = Gauge(reference, graph_input)
        watch = DriftWatch(reference)
        kind = "placed" if reference.picture is not None else "texture"
        row[f"read_{kind}_us"] = _microseconds(gauge.read, images)
        judged = [
            Judged(gauge.read(image), score) for image, score in zip(images, scores, strict=True)
        ]
        row[f"add_{kind}_us"] = _microseconds(partial(_add, watch), judged)
        row["prepare_us"] = _microseconds(graph_input.of_frame, frames)
    row["other_processes"] = share_of_others(start, read_cpu())
    return row


def _add(watch: DriftWatch, frame: Judged) -> None:
    watch.add("1", frame.reading, frame.score)


def _microseconds(call: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Return the median CPU time of this thread for a call."""
    times = []
    for number in range(ROUNDS):
        item = items[number % len(items)]
        begin = time.thread_time()
        call(item)
        times.append(1e6 * (time.thread_time() - begin))
    return round(float(np.median(times[ROUNDS // 10 :])), 1)
