"""Speed and accuracy of a bundle, both from the same calls of its detector."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flawline.benchmarks.labels import labels_of
from flawline.benchmarks.measure.timing import percentiles, slowest_and_fastest
from flawline.cameras.decode import read_image
from flawline.cameras.listing import count_of
from flawline.runtime.bundle import Bundle, BundleError, read_bundle
from flawline.runtime.console import log, printable
from flawline.runtime.detector import Detector
from flawline.runtime.engines import (
    REFERENCE_ENGINE,
    EngineError,
    EngineOptions,
)
from flawline.runtime.environment import cpu_name, versions
from flawline.runtime.load import read_cpu, share_of_others
from flawline.runtime.precisions import FP32
from flawline.runtime.threshold import clear_flip, flipped
from flawline.train import metrics
from flawline.train.data import Sample, open_data
from flawline.train.data.masks import Mask, read_mask
from flawline.train.progress import Bars

# Untimed calls of each engine before the first image.
WARM_UP = 5
# Untimed seconds before each turn of an engine. The threads of the engine before it may still be
# spinning, and would slow it down.
SETTLE_S = 0.03

Row = dict[str, Any]


class EngineChoice(NamedTuple):
    """An engine by its name, and how to open it."""

    name: str
    options: EngineOptions


@dataclass
class EngineRun:
    """The results of one engine on all test images.

    `scores` and `maps` ([H, W] each) have one entry per image, `times_ms` one per timed call.
    `maps` is empty for a bundle without maps.
    """

    engine: str
    precision: str
    description: str = ""
    threads: int | None = None
    times_ms: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    maps: list[npt.NDArray[np.float32]] = field(default_factory=list)


def evaluate_bundle(
    bundle_path: Path, data: Path, engine: str, options: EngineOptions, repeats: int
) -> Row:
    """Return the row of one engine; see evaluate_engines."""
    choice = EngineChoice(engine, options)
    return evaluate_engines(bundle_path, data, [choice], repeats)[0]


def evaluate_engines(
    bundle_path: Path,
    data: Path,
    choices: Sequence[EngineChoice],
    repeats: int,
    skip_unavailable: bool = False,
) -> list[Row]:
    """Judge the test images of `data` with each engine and return one row of results for each.

    Every image is judged `repeats` times by every engine: the accuracy is that of the last time,
    the speed that of all times. Engines take turns on each image, so that a disturbance of the
    machine affects all of them. An engine that cannot be opened raises EngineError or BundleError;
    with `skip_unavailable` it is logged and has no row. Raises DataError for unsuitable data.
    """
    bundle = read_bundle(bundle_path)
    data_set = open_data(data)
    samples = data_set.test
    labels = labels_of(data_set)
    for line in data_set.describe():
        log(line)
    # Read first, so that a damaged mask is reported before everything is measured.
    masks = _read_masks(samples, bundle)
    with ExitStack() as stack:
        opened_engines = _open_detectors(bundle, choices, skip_unavailable, stack)
        start = read_cpu()
        _judge_samples(opened_engines, samples, bundle, repeats)
        others = share_of_others(start, read_cpu())
    # The engines are closed now: the metrics need the memory.
    reference = _reference(opened_engines)
    rows = []
    for run, _ in opened_engines:
        row = _facts(run, bundle, data.name, len(samples))
        row |= _image_accuracy(labels, run)
        row |= _decisions(labels, run, bundle)
        row |= _pixel_accuracy(masks, run)
        row |= percentiles(run.times_ms)
        row["fps_slowest"], row["fps_fastest"] = slowest_and_fastest(run.times_ms, repeats)
        # The engines take turns, so all of them were disturbed in the same way.
        row["other_processes"] = None if others is None else round(others, 3)
        row["model_sha256"] = bundle.model_sha256(run.precision)[:16]
        row["versions"] = versions()
        row |= compare_with_reference(run, reference, bundle)
        rows.append(row)
    return rows


def _open_detectors(
    bundle: Bundle, choices: Sequence[EngineChoice], skip_unavailable: bool, stack: ExitStack
) -> list[tuple[EngineRun, Detector]]:
    """Open a detector for each choice; `stack` closes them."""
    opened = []
    for name, options in choices:
        try:
            detector = stack.enter_context(Detector(bundle, name, options))
        except (EngineError, BundleError) as error:
            if not skip_unavailable:
                raise
            # A missing row must not look like an engine that does not exist.
            log(f"note: left out {name} {options.precision}: {error}")
            continue
        engine = detector.engine
        run = EngineRun(engine.name, engine.precision, engine.description, options.threads)
        opened.append((run, detector))
    if not opened:
        raise EngineError(f"no engine could be opened for {bundle.path}; see the notes above")
    return opened


def _judge_samples(
    opened_engines: Sequence[tuple[EngineRun, Detector]],
    samples: Sequence[Sample],
    bundle: Bundle,
    repeats: int,
) -> None:
    """Judge each image with each engine in turn, and add the results to the runs."""
    # A 16-bit image is an error if the detector was trained on 8-bit images.
    bit_depth = bundle.manifest.file_bit_depth
    # One engine alone is not disturbed by the threads of another.
    settle_s = SETTLE_S if len(opened_engines) > 1 else 0.0
    warm_up = WARM_UP
    with Bars() as progress:
        for index, sample in enumerate(samples):
            image = read_image(sample.path, bit_depth)
            for run, detector in opened_engines:
                _settle(detector, image, warm_up, settle_s)
                _take_turn(run, detector, image, sample.path, repeats)
            warm_up = 0
            progress(bundle.path.name, index + 1, len(samples))


def _settle(detector: Detector, image: npt.NDArray[Any], calls: int, seconds: float) -> None:
    """Judge an image untimed, at least `calls` times and for at least `seconds`."""
    for _ in range(calls):
        detector(image)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        detector(image)


def _take_turn(
    run: EngineRun, detector: Detector, image: npt.NDArray[Any], path: Path, repeats: int
) -> None:
    for _ in range(repeats):
        verdict = detector(image)
        run.times_ms.append(sum(verdict.milliseconds.values()))
    if verdict.reason is not None:
        raise EngineError(
            f"{run.description} cannot judge {path}: {verdict.reason}; choose another --engine "
            "or build the bundle again"
        )
    run.scores.append(verdict.score)
    if detector.bundle.has_map:
        assert verdict.anomaly_map is not None
        # The engine overwrites its map in the next call.
        run.maps.append(verdict.anomaly_map.copy())


def _reference(opened_engines: Sequence[tuple[EngineRun, Detector]]) -> EngineRun | None:
    for run, _ in opened_engines:
        if (run.engine, run.precision) == (REFERENCE_ENGINE, FP32.name):
            return run
    return None


def _facts(run: EngineRun, bundle: Bundle, data_name: str, images: int) -> Row:
    """Return what was measured, on which machine and on which data."""
    manifest = bundle.manifest
    geometry = manifest.geometry
    return {
        "bundle": printable(bundle.path.name),
        "method": manifest.method,
        "backbone": manifest.backbone,
        "weights": manifest.provenance.get("train_weights", "unknown"),
        # How far a training came that was cut short, such as "17 of 100 steps".
        "unfinished": manifest.cut_short,
        "data": printable(data_name),
        "input": f"{geometry.width}x{geometry.height} {geometry.kind}",
        # A camera delivers one frame at a time.
        "batch": 1,
        "engine": run.description,
        "precision": run.precision,
        "threads": run.threads or "all",
        "device": cpu_name(),
        "images": images,
        # Without one, the accuracies of pixels are not unknown but meaningless.
        "has_map": bundle.has_map,
    }


def _image_accuracy(labels: metrics.Labels, run: EngineRun) -> Row:
    scores = np.array(run.scores)
    return {
        "image_auroc": _rounded(metrics.auroc(labels, scores)),
        "image_ap": _rounded(metrics.average_precision(labels, scores)),
    }


def _decisions(labels: metrics.Labels, run: EngineRun, bundle: Bundle) -> Row:
    """Return what the bundle's threshold makes of the scores: how many images are misjudged."""
    threshold = bundle.calibration.threshold
    anomalous = np.array(run.scores) > threshold
    return {
        "threshold": threshold,
        "good_images": int((~labels).sum()),
        "false_alarms": int((anomalous & ~labels).sum()),
        "defective_images": int(labels.sum()),
        "missed": int((~anomalous & labels).sum()),
    }


def _read_masks(samples: Sequence[Sample], bundle: Bundle) -> list[Mask | None]:
    """Return the masks of the images, bool [H, W] each; none without maps or without any mask.

    A defective image without a mask has None: which of its pixels are defective is not known.
    """
    if not bundle.has_map or not any(sample.mask for sample in samples):
        return []
    masks: list[Mask | None] = []
    empty = []
    for sample in samples:
        mask = None
        if sample.defect is None or sample.mask is not None:
            mask = read_mask(sample, bundle.manifest.geometry)
            if sample.mask is not None and not mask.any():
                empty.append(sample.mask)
        masks.append(mask)
    if empty:
        log(
            f"note: {count_of(len(empty), 'mask')} of defective images without any defective "
            f"pixel, such as {empty[0]}"
        )
    return masks


def _pixel_accuracy(masks: Sequence[Mask | None], run: EngineRun) -> Row:
    """Return the accuracies of the maps; all None without a map or without any mask."""
    accuracy: Row = {"pixel_auroc": None, "pixel_ap": None, "aupro": None}
    if not masks:
        return accuracy
    known = []
    maps = []
    for mask, anomaly_map in zip(masks, run.maps, strict=True):
        if mask is not None:
            known.append(mask)
            maps.append(anomaly_map)
    all_masks = np.array(known)
    all_maps = np.array(maps)
    accuracy["pixel_auroc"] = _rounded(metrics.auroc(all_masks, all_maps))
    accuracy["pixel_ap"] = _rounded(metrics.average_precision(all_masks, all_maps))
    accuracy["aupro"] = _rounded(metrics.aupro(all_masks, all_maps))
    return accuracy


def _rounded(value: float) -> float | None:
    """Return a metric with four decimals; None when it is undefined."""
    return None if np.isnan(value) else round(value, 4)


def compare_with_reference(run: EngineRun, reference: EngineRun | None, bundle: Bundle) -> Row:
    """Return how much faster a run is than the reference, and its flipped verdicts.

    A flip is clear when the score of the reference is farther from the threshold than the
    manifest's tolerance. All values are None without a reference.
    """
    if reference is None:
        return {"speedup": None, "flips": None, "clear_flips": None}
    threshold = bundle.calibration.threshold
    tolerance = bundle.manifest.score_tolerance
    expected = np.array(reference.scores)
    scores = np.array(run.scores)
    flips = flipped(expected, scores, threshold)
    clear_flips = clear_flip(expected, scores, threshold, tolerance)
    # Medians, so that a few disturbed calls do not decide.
    speedup = np.median(reference.times_ms) / np.median(run.times_ms)
    return {
        "speedup": round(float(speedup), 2),
        "flips": int(flips.sum()),
        "clear_flips": int(clear_flips.sum()),
    }
