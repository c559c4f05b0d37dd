"""Times and drift of every call of the study, at growing batches."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flawline.benchmarks.measure.sessions import InferenceCall
from flawline.benchmarks.measure.timing import percentiles
from flawline.benchmarks.studies.gpu_check.calls import engine_calls, torch_calls
from flawline.benchmarks.studies.network import bundle_of_network
from flawline.export.graphs.to_fp16 import to_fp16
from flawline.export.graphs.to_onnx import onnx_from_module
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log
from flawline.runtime.golden import Golden
from flawline.runtime.image import Image
from flawline.runtime.timing import time_calls
from flawline.train.blocks.fused import fp32_islands
from flawline.train.method import Method

# Images per call: one camera, a few, and what saturates the GPU.
BATCHES = (1, 8, 32)
# Every row is timed in this many turns, for so many seconds in each of them.
TURNS = 2
SECONDS = 1.5
# Untimed calls before each turn: kernels are compiled, graphs recorded and clocks raised.
WARM_UP = 20


def measure_device(
    method: Method, images: Image, device: torch.device, deadline: float
) -> list[dict[str, Any]]:
    """Return one row for each call and batch. `images` is uint8 [n, H, W, 3]; see measure_calls."""
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder, ExitStack() as stack:
        # The bundle comes first: torch_calls moves modules of the method to the device.
        bundle = write_study_bundle(method, images, Path(folder) / "bundle")
        reference = bundle.golden().scores
        calls = dict(torch_calls(method, device))
        if device.type == "cuda":
            calls.update(engine_calls(bundle, stack))
        return measure_calls(calls, images, reference, deadline)


def write_study_bundle(method: Method, images: Image, folder: Path) -> Bundle:
    """Write a bundle of FP32 and FP16 graphs with wide tolerances.

    Drift is reported by this study, so no engine is refused for it.
    """
    with torch.inference_mode():
        score, anomaly_map = method(torch.from_numpy(images))
    golden = Golden(images, score.numpy(), anomaly_map.numpy())
    tolerance = 10 * float(np.ptp(golden.maps)) + 1.0
    fused = method.fused()
    fp32 = onnx_from_module(fused, method.geometry)
    islands = fp32_islands(fused)
    models = {"fp32": fp32, "fp16": to_fp16(fp32, islands)}
    return bundle_of_network(method, models, golden, folder, tolerance, islands)


def measure_calls(
    calls: Mapping[str, InferenceCall], images: Image, reference: NDArray[Any], deadline: float
) -> list[dict[str, Any]]:
    """Return one row for each call and batch, with times and drift, measured in alternating turns.

    Drift is the largest difference of a score from `reference` [n], relative to the standard
    deviation of the reference. What cannot begin before `deadline`, a value of time.monotonic(), is
    left out with a note.
    """
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(TURNS):
        for batch in BATCHES:
            # The images are repeated to fill the batch.
            batch_of_images = np.resize(images, (batch, *images.shape[1:]))
            for name, call in calls.items():
                if time.monotonic() > deadline:
                    log(f"note: out of time before {name}, batch {batch}")
                    continue
                key = (name, batch)
                if key not in rows:
                    drift = _drift(call, images, reference)
                    rows[key] = {"call": name, "batch": batch, "drift": drift}
                    times[key] = []
                times[key] += time_calls(
                    partial(call, batch_of_images), warm_up=WARM_UP, seconds=SECONDS
                )
    for key, milliseconds in times.items():
        rows[key].update(percentiles(milliseconds))
        images_per_second = 1e3 * key[1] / float(np.median(milliseconds))
        rows[key]["images_per_s"] = round(images_per_second, 1)
    return list(rows.values())


def _drift(call: InferenceCall, images: Image, reference: NDArray[Any]) -> float:
    scores = []
    for image in images:
        # A copy, because an engine may write the next score into the same buffer.
        scores.append(np.copy(call(image[None])[0]))
    difference = np.abs(np.concatenate(scores) - reference)
    return float(difference.max() / reference.std())
