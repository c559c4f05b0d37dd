"""A graph of another precision for a bundle: written from its FP32 graph, proven against it on real images, added.

Needs onnx and no torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flawline.export.graphs.to_fp16 import to_fp16
from flawline.export.graphs.to_int8 import describe as describe_int8
from flawline.export.graphs.to_int8 import to_int8
from flawline.export.parity import ExportError, compare, gate
from flawline.runtime.bundle import Bundle, add_model
from flawline.runtime.console import log
from flawline.runtime.engines import tolerances
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime
from flawline.runtime.image import Geometry
from flawline.train.data.images import DataSet, PreparedImages, hold_out, open_data
from flawline.train.progress import Bars, Progress

INT8_IMAGES = 64  # good images, of those trained on, that give INT8 its ranges


def add_precision(bundle: Bundle, precision: str, data: Path | None, limit: int) -> Bundle:
    """Write, prove and add the graph of `precision`. Raises ExportError where its decisions or scores left FP32's.

    `data` None takes the images that the bundle was built on; up to `limit` of its test images are judged.
    """
    manifest = bundle.manifest
    data_set = open_data(data or Path(manifest.provenance["data"]))
    train, held = hold_out(data_set.train_good)
    paths = parity_paths(held, data_set, limit)
    images, good = (
        open_images(p, manifest.geometry, manifest.provenance["train_bits"]) for p in (paths, train)
    )
    fp32 = bundle.model().read_bytes()
    bars = Bars()
    try:
        if precision == "int8":
            chosen = [
                good[int(i)] for i in np.linspace(0, len(good) - 1, min(INT8_IMAGES, len(good)))
            ]
            model = to_int8(fp32, chosen, manifest.fp32_islands, manifest.score.std, bars)
            log(describe_int8(model))
        else:
            model = to_fp16(fp32, manifest.fp32_islands)
        reference, maps = engine_scores(fp32, "fp32", bundle.map_size, images, bars)
        scores, got_maps = engine_scores(model, precision, bundle.map_size, images, bars)
    finally:
        bars.close()
    tolerance, map_tolerance = tolerances(manifest, precision)
    parity = compare(
        paths,
        reference,
        scores,
        bundle.calibration.threshold,
        tolerance,
        max(manifest.score.std, 1e-9),
    )
    log(f"{precision} against fp32: {parity}")
    for near in parity.near_flips:
        log(f"note: within tolerance of the threshold: {near}")
    map_error = float(np.abs(got_maps - maps).max(initial=0.0))
    try:
        gate(parity, tolerance, map_error, map_tolerance)
    except ExportError as error:
        raise ExportError(f"{precision} was not added: {error}") from error
    return add_model(bundle, precision, model)


def open_images(paths: list[Path], geometry: Geometry, bits: str) -> PreparedImages:
    return PreparedImages(paths, geometry, None if int(bits) == 8 else int(bits))


def parity_paths(held: list[Path], data_set: DataSet, limit: int) -> list[Path]:
    """All held-out good images, then up to `limit` test images, evenly spread over the kinds of defect."""
    test = [sample.path for sample in data_set.test]
    chosen: Any = np.linspace(0, len(test) - 1, min(limit, len(test))).astype(int) if test else []
    return held + [test[i] for i in chosen]


def engine_scores(
    model: bytes,
    precision: str,
    map_size: tuple[int, int],
    images: Sequence[Any],
    progress: Progress,
) -> tuple[Any, Any]:
    """Scores [n] and maps [n, *map_size] of prepared images as ONNX Runtime computes them, one at a time."""
    scores, maps = [], []
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        engine = OnnxRuntime(path, map_size, precision=precision)
        for i, image in enumerate(images):
            score, heat = engine(image[None])
            scores.append(float(score[0]))
            maps.append(heat[0].copy())
            progress(f"onnxruntime {precision}", i + 1, len(images))
        engine.close()
    return np.array(scores, np.float32), np.array(maps)
