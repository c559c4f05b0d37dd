"""Times and scores of every form of one trained detector, on the same test images in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flawline.benchmarks.interleaved import WARM_UP, settle
from flawline.benchmarks.labels import labels_of
from flawline.benchmarks.measure.machine import machine_facts
from flawline.benchmarks.measure.timing import percentiles
from flawline.benchmarks.run import choose_engines
from flawline.benchmarks.studies.fusion.forms import FUSED, LITERAL, PUBLISHED, build_forms
from flawline.benchmarks.studies.whole_frames import require_whole_frames
from flawline.cameras.decode import read_image
from flawline.runtime.bundle import Bundle, BundleError, read_bundle
from flawline.runtime.console import log, printable
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError
from flawline.runtime.image import Geometry, Image, prepare
from flawline.runtime.load import read_cpu, share_of_others
from flawline.runtime.tolerances import flipped
from flawline.train import TrainError
from flawline.train.checkpoint import load_checkpoint
from flawline.train.data import Sample, data_name, open_data
from flawline.train.loop import choose_device
from flawline.train.method import Method
from flawline.train.metrics import Labels, auroc
from flawline.train.progress import Bars

# The forms in the order of the work that they leave out; further ones are not on this way.
FORMS = (PUBLISHED, LITERAL, FUSED)


@dataclass
class Stage:
    """One form of the detector in one engine, and what it gave.

    judge: returns the score of an image as a camera delivers it. times_ms and scores have one
    entry per test image.
    """

    form: str
    engine: str
    judge: Callable[[Image], float]
    times_ms: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


def measure_stages(
    checkpoint: Path,
    bundle_path: Path,
    data: Path,
    count: int | None = None,
    threads: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Judge test images with every form of a detector; return the rows and what they hold for.

    count: of the images, spread over all; None for all. device: of PyTorch. Raises TrainError,
    BundleError and DataError, and TrainError for a bundle of another method or size than the
    checkpoint's.
    """
    loaded = load_checkpoint(checkpoint)
    bundle = read_bundle(bundle_path)
    require_whole_frames(bundle)
    _require_same(loaded.method.name, loaded.method.geometry, bundle)
    data_set = open_data(data)
    labels = labels_of(data_set)
    chosen = _chosen(labels, count)
    samples = [data_set.test[index] for index in chosen]
    with ExitStack() as stack, torch.inference_mode():
        stages = _torch_stages(loaded.method, choose_device(device))
        stages += _engine_stages(bundle, threads, stack)
        start = read_cpu()
        _judge(stages, samples, bundle.manifest.file_bit_depth, data_name(data))
        others = share_of_others(start, read_cpu())
    return {
        "method": loaded.method.name,
        "backbone": bundle.manifest.backbone,
        "weights": bundle.manifest.provenance.get("train_weights", "unknown"),
        "input": f"{loaded.method.geometry.width}x{loaded.method.geometry.height}",
        "data": printable(data_name(data)),
        "images": len(samples),
        "threads": threads or "all",
        "machine": machine_facts(),
        "other_processes": None if others is None else round(others, 3),
        "rows": _rows(stages, labels[chosen], bundle.calibration.threshold),
    }


def _require_same(method: str, geometry: Geometry, bundle: Bundle) -> None:
    manifest = bundle.manifest
    if (manifest.method, manifest.geometry) != (method, geometry):
        raise TrainError(
            f"--bundle {bundle.path}: is {manifest.method} at "
            f"{manifest.geometry.width}x{manifest.geometry.height}, the checkpoint is {method} at "
            f"{geometry.width}x{geometry.height}; build the bundle from the checkpoint"
        )


def _chosen(labels: Labels, count: int | None) -> list[int]:
    """Return the indices of the images to judge, with the same share of good ones as in all."""
    if count is None or count >= len(labels):
        return list(range(len(labels)))
    chosen: list[int] = []
    for kind in (False, True):
        indices = np.flatnonzero(labels == kind)
        wanted = max(1, round(count * len(indices) / len(labels)))
        spread = np.linspace(0, len(indices) - 1, wanted).round().astype(int)
        chosen += indices[np.unique(spread)].tolist()
    return sorted(chosen)


def _torch_stages(method: Method, device: torch.device) -> list[Stage]:
    """Return a stage for each of FORMS that the method has."""
    forms = build_forms(method)
    stages = []
    for label in FORMS:
        if label in forms:
            module = forms[label].to(device)
            judge = _judge_in_torch(module, method.geometry, device)
            stages.append(Stage(label, f"torch eager fp32 ({device.type})", judge))
    return stages


def _judge_in_torch(
    module: nn.Module, geometry: Geometry, device: torch.device
) -> Callable[[Image], float]:
    def judge(image: Image) -> float:
        prepared = torch.from_numpy(prepare(image, geometry))[None]
        score, anomaly_map = module(prepared.to(device))
        # An application reads both results.
        anomaly_map.cpu()
        return float(score.cpu()[0])

    return judge


def _engine_stages(bundle: Bundle, threads: int | None, stack: ExitStack) -> list[Stage]:
    """Open the bundle in every usable engine and precision; `stack` closes them."""
    stages = []
    for choice in choose_engines(["all"], "all", threads):
        name = choice.name
        options = choice.options
        try:
            detector = stack.enter_context(Detector(bundle, name, options))
        except (EngineError, BundleError) as error:
            log(f"note: left out {name} {options.precision}: {error}")
            continue
        engine = f"{detector.engine.name} {detector.engine.precision}"
        stages.append(Stage(FUSED, engine, _judge_in_engine(detector)))
    return stages


def _judge_in_engine(detector: Detector) -> Callable[[Image], float]:
    def judge(image: Image) -> float:
        return float(detector(image).score)

    return judge


def _judge(
    stages: Sequence[Stage], samples: Sequence[Sample], bit_depth: int | None, title: str
) -> None:
    """Judge each image once with each stage, after untimed calls."""
    calls = WARM_UP
    with Bars() as progress:
        for number, sample in enumerate(samples, 1):
            image = read_image(sample.path, bit_depth)
            for stage in stages:
                # The threads of the library before may still be spinning.
                settle(stage.judge, image, calls)
                start = time.perf_counter()
                score = stage.judge(image)
                stage.times_ms.append(1e3 * (time.perf_counter() - start))
                stage.scores.append(score)
            calls = 0
            progress(title, number, len(samples))


def _rows(stages: Sequence[Stage], labels: Labels, threshold: float) -> list[dict[str, Any]]:
    rows = []
    first = np.array(stages[0].scores)
    for stage in stages:
        scores = np.array(stage.scores)
        row: dict[str, Any] = {"form": stage.form, "engine": stage.engine}
        row["image_auroc"] = round(auroc(labels, scores), 4)
        row["flips"] = int(flipped(first, scores, threshold).sum())
        row |= percentiles(stage.times_ms)
        speedup = np.median(stages[0].times_ms) / np.median(stage.times_ms)
        row["speedup"] = round(float(speedup), 2)
        rows.append(row)
    return rows
