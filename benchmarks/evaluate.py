"""Speed and accuracy of bundles, both from the same calls of their detectors."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flawline.benchmarks.grid_masks import read_masks
from flawline.benchmarks.interleaved import (
    EngineChoice,
    EngineRun,
    LeftOut,
    Measurement,
    judge_samples,
    judging,
    log_left_out,
    open_measurements,
)
from flawline.benchmarks.labels import labels_of
from flawline.benchmarks.measure.timing import percentiles, slowest_and_fastest
from flawline.benchmarks.pixel_threshold import (
    NO_MAP,
    PixelThreshold,
    needs_pixel_threshold,
    pixel_threshold,
)
from flawline.benchmarks.protocol import NO_MASKS, Truth, protocol_of, read_truth, rounded
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.console import log_notes, printable
from flawline.runtime.engines import REFERENCE_ENGINE, EngineOptions
from flawline.runtime.environment import cpu_name, versions
from flawline.runtime.load import read_cpu, share_of_others
from flawline.runtime.precisions import FP32
from flawline.runtime.tolerances import clear_flip, flipped
from flawline.train import metrics
from flawline.train.data import DataSet, Sample, data_name, open_data
from flawline.train.data.masks import Mask

Row = dict[str, Any]


@dataclass
class _Entry:
    """A bundle with the masks of the test images on its grid, and what its engines gave.

    `pixel_thresholds` has one entry for each measurement, or none without the protocol.
    """

    bundle: Bundle
    masks: list[Mask | None]
    measurements: list[Measurement] = field(default_factory=list)
    pixel_thresholds: list[PixelThreshold] = field(default_factory=list)

    def reference(self) -> EngineRun | None:
        for measurement in self.measurements:
            run = measurement.run
            if (run.engine, run.precision) == (REFERENCE_ENGINE, FP32.name):
                return run
        return None

    def open(
        self, choices: Sequence[EngineChoice], left_out: LeftOut | None, stack: ExitStack
    ) -> None:
        """Open the engines; see open_measurements."""
        # Maps of a whole test set are large, and nothing but masks needs them.
        keeps_maps = bool(self.masks)
        self.measurements = open_measurements(self.bundle, choices, left_out, keeps_maps, stack)

    def set_pixel_thresholds(self, data_set: DataSet) -> None:
        """Set the threshold of the maps of each engine, from held-out good images."""
        reason = None
        if not needs_pixel_threshold(self.bundle, data_set):
            reason = NO_MASKS if self.bundle.has_map else NO_MAP
        for measurement in self.measurements:
            pixel = PixelThreshold(None, reason=reason)
            if reason is None:
                with judging(measurement.run):
                    pixel = pixel_threshold(measurement.detector, data_set)
            self.pixel_thresholds.append(pixel)

    def protocol_rows(self, truth: Truth | None) -> list[Row]:
        """Return the protocol's keys for each measurement; no keys without `truth`."""
        if truth is None:
            return [{} for _ in self.measurements]
        rows = []
        for measurement, pixel in zip(self.measurements, self.pixel_thresholds, strict=True):
            run = measurement.run
            scores = np.array(run.scores)
            rows.append(protocol_of(truth, scores, self.bundle, pixel, self.masks, run.maps))
        return rows


def evaluate_bundle(
    bundle_path: Path, data: Path, engine: str, options: EngineOptions, repeats: int
) -> Row:
    """Return the row of one engine; see evaluate_bundles."""
    choice = EngineChoice(engine, options)
    return evaluate_bundles([bundle_path], data, [choice], repeats)[0]


def evaluate_bundles(
    bundle_paths: Sequence[Path],
    data: Path,
    choices: Sequence[EngineChoice],
    repeats: int,
    skip_unavailable: bool = False,
    protocol: bool = False,
    left_out: LeftOut = log_left_out,
    turn: int = 1,
) -> list[Row]:
    """Judge the test images of `data` with each bundle in each engine; return a row for each.

    Every image is judged `repeats` times by every engine: the accuracy is that of the last time,
    the speed that of all times. Bundles and engines take turns on each image, so that a disturbance
    of the machine affects all of them; `turn` images at a time take less time in all. An engine
    that cannot be opened raises EngineError or BundleError; with `skip_unavailable` it has no row
    and `left_out` is called. With `protocol`, rows also have the keys of `protocol_of`. Raises
    DataError for unsuitable data, and JudgingError for an engine that cannot judge an image.
    """
    data_set = open_data(data)
    samples = data_set.test
    labels = labels_of(data_set)
    truth = read_truth(data_set) if protocol else None
    log_notes(data_set.describe())
    # Masks are read first, so that a damaged one is reported before everything is measured.
    entries = _read_entries(bundle_paths, samples)
    with ExitStack() as stack:
        measurements = []
        for entry in entries:
            entry.open(choices, left_out if skip_unavailable else None, stack)
            measurements += entry.measurements
            if protocol:
                # Before the first test image is judged.
                entry.set_pixel_thresholds(data_set)
        start = read_cpu()
        judge_samples(measurements, samples, repeats, _title(entries, data), turn)
        others = share_of_others(start, read_cpu())
    # The engines are closed now: the metrics need the memory.
    rows = []
    for entry in entries:
        protocols = entry.protocol_rows(truth)
        for measurement, keys in zip(entry.measurements, protocols, strict=True):
            row = _row(measurement.run, entry, data_name(data), labels, repeats, others)
            rows.append(row | keys)
    return rows


def _read_entries(bundle_paths: Sequence[Path], samples: Sequence[Sample]) -> list[_Entry]:
    entries = []
    for path in bundle_paths:
        bundle = read_bundle(path)
        entries.append(_Entry(bundle, read_masks(samples, bundle)))
    return entries


def _title(entries: Sequence[_Entry], data: Path) -> str:
    """Return the title of the progress bar."""
    if len(entries) == 1:
        return entries[0].bundle.path.resolve().name
    return f"{len(entries)} bundles, {data_name(data)}"


def _row(
    run: EngineRun,
    entry: _Entry,
    of_data: str,
    labels: metrics.Labels,
    repeats: int,
    others: float | None,
) -> Row:
    bundle = entry.bundle
    row = _facts(run, bundle, of_data, len(labels))
    row |= _image_accuracy(labels, run)
    row |= _decisions(labels, run, bundle)
    row |= _pixel_accuracy(entry.masks, run)
    row |= percentiles(run.times_ms)
    row["fps_slowest"], row["fps_fastest"] = slowest_and_fastest(run.times_ms, repeats)
    # All engines of a data set take turns, so they were disturbed in the same way.
    row["other_processes"] = None if others is None else round(others, 3)
    row["model_sha256"] = bundle.model_sha256(run.precision)[:16]
    row["versions"] = versions()
    row |= compare_with_reference(run, entry.reference(), bundle)
    return row


def _facts(run: EngineRun, bundle: Bundle, of_data: str, images: int) -> Row:
    """Return what was measured, on which machine and on which data."""
    manifest = bundle.manifest
    return {
        "bundle": printable(bundle.path.resolve().name),
        "bundle_id": bundle.short_id,
        "method": manifest.method,
        "backbone": manifest.backbone,
        "weights": manifest.provenance.get("train_weights", "unknown"),
        # How far a training came that was cut short, such as "17 of 100 steps".
        "unfinished": manifest.cut_short,
        "data": printable(of_data),
        "input": str(manifest.graph_input),
        # A camera delivers one frame at a time, unless throughput is measured.
        "batch": run.batch or 1,
        "engine": run.description,
        "precision": run.precision,
        "threads": run.threads or "all",
        "streams": run.streams,
        "device": cpu_name(),
        "images": images,
        # Without one, the accuracies of pixels are not unknown but meaningless.
        "has_map": bundle.has_map,
    }


def _image_accuracy(labels: metrics.Labels, run: EngineRun) -> Row:
    scores = np.array(run.scores)
    return {
        "image_auroc": rounded(metrics.auroc(labels, scores)),
        "image_ap": rounded(metrics.average_precision(labels, scores)),
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
    accuracy["pixel_auroc"] = rounded(metrics.auroc(all_masks, all_maps))
    accuracy["pixel_ap"] = rounded(metrics.average_precision(all_masks, all_maps))
    accuracy["aupro"] = rounded(metrics.aupro(all_masks, all_maps))
    return accuracy


def compare_with_reference(run: EngineRun, reference: EngineRun | None, bundle: Bundle) -> Row:
    """Return how much faster a run is than the reference, its flipped verdicts and its drift.

    A flip is clear when the score of the reference is farther from the threshold than the
    manifest's tolerance. The drift is the largest difference of a score, in standard deviations of
    the scores of good images; None if these are all equal. All values are None without a reference.
    """
    if reference is None:
        return {"speedup": None, "flips": None, "clear_flips": None, "drift": None}
    threshold = bundle.calibration.threshold
    tolerance = bundle.manifest.score_tolerance
    expected = np.array(reference.scores)
    scores = np.array(run.scores)
    flips = flipped(expected, scores, threshold)
    clear_flips = clear_flip(expected, scores, threshold, tolerance)
    # Medians, so that a few disturbed calls do not decide.
    speedup = np.median(reference.times_ms) / np.median(run.times_ms)
    drift = None
    if bundle.manifest.score.std > 0:
        largest = float(np.abs(scores - expected).max())
        drift = round(largest / bundle.manifest.score.std, 4)
    return {
        "speedup": round(float(speedup), 2),
        "flips": int(flips.sum()),
        "clear_flips": int(clear_flips.sum()),
        "drift": drift,
    }
