"""python -m benchmarks.run: speed and accuracy of bundles, from the same bundle through the same call.

    python -m benchmarks.run --bundles bundles/* --data /data/mvtec/bottle --out results/

Every test image goes through `Detector` as a camera's frame would, `--repeats` times: that call gives the score (of the
last time) and the times. Decoding the file is not timed: a camera delivers pixels.
"""

from __future__ import annotations

from train import require_extra

require_extra("flawline-bench")

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import write_report
from benchmarks.timing import percentiles
from cameras import CameraError
from cameras.files import read_image
from runtime.bundle import BundleError, read_bundle
from runtime.console import say
from runtime.detector import Detector
from runtime.engine import ENGINES, EngineError, EngineOptions
from runtime.environment import cpu_name, versions
from train import metrics
from train.data import DataError, open_data, read_mask
from train.progress import Bars

WARM_UP = 5


def measure(bundle_path: Path, data: Path, engine: str, options: EngineOptions, repeats: int) -> dict[str, Any]:
    """One row: accuracy over the test images of `data`, speed over `repeats` passes. Raises the known errors."""
    samples = open_data(data).test
    if not samples or all(s.defect is None for s in samples) or all(s.defect for s in samples):
        raise DataError(f"data {data}: accuracy needs good and defective test images; see --data in the README")
    bundle = read_bundle(bundle_path)
    geometry, bits = bundle.manifest.geometry, int(bundle.manifest.provenance.get("train_bits", "8"))
    scores, maps, times, bars = [], [], [], Bars()
    with Detector(bundle, engine, options) as detector:
        for i, sample in enumerate(samples):
            image = read_image(sample.path, None if bits == 8 else bits)
            for _ in range(WARM_UP if i == 0 else 0):
                detector(image)
            for _ in range(repeats):
                verdict = detector(image)
                times.append(sum(verdict.milliseconds.values()))
            scores.append(verdict.score)
            maps.append(verdict.map.copy())
            bars(bundle_path.name, i + 1, len(samples))
        description, precision = detector.engine.description, detector.engine.precision
    labels = np.array([s.defect is not None for s in samples])
    return {
        "bundle": bundle_path.name,
        "method": bundle.manifest.method,
        "backbone": bundle.manifest.backbone,
        "weights": bundle.manifest.provenance.get("train_weights", "unknown"),
        "data": data.name,
        "input": f"{geometry.width}x{geometry.height} {geometry.kind}",
        "batch": 1,
        "engine": description,
        "precision": precision,
        "threads": options.threads or "all",
        "device": cpu_name(),
        "images": len(samples),
        **_accuracy(labels, np.array(scores), samples, np.array(maps), geometry),
        **percentiles(times),
        "model_sha256": bundle.model_sha256(precision if precision in bundle.precisions else "fp32")[:16],
        "versions": versions(),
    }


def _accuracy(labels: Any, scores: Any, samples: Any, maps: Any, geometry: Any) -> dict[str, float | None]:
    """Image metrics over all images; pixel metrics where every defect that has a class has masks."""
    found: dict[str, float | None] = {
        "image_auroc": metrics.auroc(labels, scores),
        "image_ap": metrics.average_precision(labels, scores),
        "pixel_auroc": None,
        "pixel_ap": None,
        "aupro": None,
    }
    known = np.array([s.defect is None or s.mask is not None for s in samples])
    if any(s.mask is not None for s in samples):
        masks = np.array([read_mask(s, geometry) for s, k in zip(samples, known, strict=True) if k])
        found["pixel_auroc"] = metrics.auroc(masks, maps[known])
        found["pixel_ap"] = metrics.average_precision(masks, maps[known])
        found["aupro"] = metrics.aupro(masks, maps[known])
    return {k: None if v is None or np.isnan(v) else round(v, 4) for k, v in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="flawline-bench", description="FPS against image AUROC.")
    parser.add_argument("--bundles", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="one data set for all bundles, or one each")
    parser.add_argument("--engine", nargs="+", default=["auto"], help=f"auto, {', '.join(ENGINES)}")
    parser.add_argument("--threads", type=int, help="CPU threads of the engine; default all")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes over each image; default %(default)s")
    parser.add_argument("--out", type=Path, default=Path("results"), help="default %(default)s")
    args = parser.parse_args(argv)
    if len(args.data) not in (1, len(args.bundles)):
        parser.error(f"--data takes 1 or {len(args.bundles)} data sets, one per bundle")
    data = args.data * len(args.bundles) if len(args.data) == 1 else args.data
    rows = []
    try:
        for bundle, data_set in zip(args.bundles, data, strict=True):
            options = EngineOptions(args.threads)
            rows += [measure(bundle, data_set, engine, options, args.repeats) for engine in args.engine]
    except (BundleError, EngineError, CameraError, DataError) as error:
        say(f"flawline-bench: {error}")
        return 2
    for path in write_report(rows, args.out):
        say(f"wrote {path}")
    print(json.dumps([{k: v for k, v in row.items() if k != "versions"} for row in rows], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
