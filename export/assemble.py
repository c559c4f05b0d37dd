"""From a trained method to a bundle that was proven: threshold on held-out good images, parity on real ones."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flawline.export.graphs.to_fp16 import islands_of
from flawline.export.graphs.to_onnx import node_types, onnx_from_module
from flawline.export.parity import compare, gate
from flawline.export.scoring import engine_scores, open_images, parity_paths
from flawline.runtime.bundle import OUTPUTS, Bundle, Golden, Manifest, Spread, write_bundle
from flawline.runtime.console import log
from flawline.runtime.environment import versions
from flawline.runtime.image import Geometry
from flawline.runtime.threshold import check_false_alarm_rate, describe, set_threshold
from flawline.train.blocks.fused import fp32_islands
from flawline.train.data.images import describe_sizes, hold_out, open_data
from flawline.train.method import Method, evaluate
from flawline.train.progress import Bars

# Of the good images' standard deviation: what an engine's score may be off. Far above float32 rounding and FP16's
# few thousandths, far below anything that matters to a threshold.
TOLERANCE = 0.05
GOLDEN_PER_SIDE = 3


@dataclass(frozen=True)
class Order:
    """What bundle is wanted. `rate` is the share of good parts rejected, None for the default; `limit` of the test
    images prove parity; `outputs` is OUTPUTS or ("score",); `batch` a static one, or None for any.
    """

    rate: float | None = None
    limit: int = 200
    outputs: tuple[str, ...] = OUTPUTS
    batch: int | None = None


def pack(
    method: Method,
    provenance: dict[str, str],
    data: Path,
    out: Path,
    order: Order,
    command: Sequence[str],
) -> Bundle:
    """Export, set the threshold, prove the FP32 graph against torch, write the bundle. Raises the known errors."""
    data_set = open_data(data)
    _, held = hold_out(data_set.train_good)
    # Checked before the work: so few images may not support this rate.
    check_false_alarm_rate(order.rate, len(held))
    paths = parity_paths(held, data_set, order.limit)
    images = open_images(paths, method.geometry, provenance["bits"])
    for line in describe_sizes(held, method.geometry, images.bit_depth):
        log(f"note: {line}")
    fused = method.fused()
    model = onnx_from_module(fused, method.geometry, order.outputs, order.batch)
    log(f"exported {sum(node_types(model).values())} ONNX nodes, {len(model) / 1e6:.1f} MB")
    bars = Bars()
    try:
        scores, maps = engine_scores(
            model, "fp32", _map_size(method.geometry, order.outputs), images, bars
        )
        reference, reference_maps = evaluate(method, images, bars)
    finally:
        bars.close()
    good = slice(0, len(held))
    calibration = set_threshold(scores[good], order.rate)
    for line in describe(calibration, order.rate):
        log(line)
    suspect = int(np.argmax(scores[good]))
    log(
        f"highest-scoring of them, which a bad part among the good ones would be: {scores[suspect]:.6g} {held[suspect]}"
    )
    score, map_peak = Spread.of(scores[good]), Spread.of(reference_maps[good].max((1, 2)))
    tolerances = [TOLERANCE * max(s.std, 1e-3 * abs(s.mean), 1e-6) for s in (score, map_peak)]
    tolerances[1] *= method.map_tolerance
    parity = compare(
        paths, reference, scores, calibration.threshold, tolerances[0], max(score.std, 1e-9)
    )
    log(str(parity))
    if order.outputs != OUTPUTS:
        reference_maps = maps
    gate(
        parity, tolerances[0], float(np.abs(maps - reference_maps).max(initial=0.0)), tolerances[1]
    )
    manifest = Manifest(
        method=method.name,
        backbone=method.settings.backbone,
        geometry=method.geometry,
        score=score,
        map_peak=map_peak,
        score_tolerance=tolerances[0],
        map_tolerance=tolerances[1],
        fp32_islands=islands_of(model, fp32_islands(fused)),
        outputs=order.outputs,
        provenance=_provenance(provenance, data, command),
        bit_depth=int(provenance["bits"]),
    )
    golden = _golden(images, reference, reference_maps, calibration.threshold, tolerances[0])
    return write_bundle(out, manifest, calibration, {"fp32": model}, golden)


def _map_size(geometry: Geometry, outputs: tuple[str, ...]) -> tuple[int, int]:
    return (geometry.height, geometry.width) if outputs == OUTPUTS else (0, 0)


def _golden(
    images: Sequence[Any], scores: Any, maps: Any, threshold: float, tolerance: float
) -> Golden:
    """The images farthest from the threshold on either side: their decisions survive any tolerable engine."""
    order = np.argsort(scores)
    low = [i for i in order[:GOLDEN_PER_SIDE] if scores[i] < threshold - tolerance]
    high = [i for i in order[-GOLDEN_PER_SIDE:] if scores[i] > threshold + tolerance]
    chosen = low + high or [order[0]]
    return Golden(np.stack([images[int(i)] for i in chosen]), scores[chosen], maps[chosen])


def _provenance(training: dict[str, str], data: Path, command: Sequence[str]) -> dict[str, str]:
    return {
        **{f"train_{k}": v for k, v in training.items()},
        "data": str(data.resolve()),
        "built": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "export.build", *command]),
        **versions(),
    }
