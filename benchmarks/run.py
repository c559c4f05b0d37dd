"""python -m benchmarks.run: speed and accuracy of bundles, from the same bundle through the same call.

    python -m benchmarks.run --bundles bundles/* --data /data/mvtec/bottle --engines all --out results/

Every test image goes through `Detector` as a camera's frame would, `--repeats` times: that call gives the score (of the
last time) and the times. Decoding the file is not timed: a camera delivers pixels. Several engines take turns on each
image, so that a noisy machine is noisy for all.
"""

from __future__ import annotations

from flawline.train import require_extra

require_extra("flawline-bench")

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np

from flawline.benchmarks.figure import write_report
from flawline.benchmarks.measure.timing import percentiles
from flawline.cameras import CameraError
from flawline.cameras.decode import read_image
from flawline.runtime.bundle import Bundle, BundleError, read_bundle
from flawline.runtime.console import log
from flawline.runtime.detector import Detector
from flawline.runtime.engines import ENGINES, EngineError, EngineOptions, missing
from flawline.runtime.environment import cpu_name, versions
from flawline.runtime.precisions import PRECISIONS
from flawline.train import metrics
from flawline.train.data.images import DataError, open_data, read_mask
from flawline.train.progress import Bars

WARM_UP = 5
# Before an engine's turn: the threads of the one before may still be spinning, and would be charged to it.
SETTLE_S = 0.03
REFERENCE = ("onnxruntime", "fp32")  # what flips and speed are told against
Choice = tuple[str, EngineOptions]  # an engine by its name, and how it is opened


def measure(
    bundle_path: Path, data: Path, engine: str, options: EngineOptions, repeats: int
) -> dict[str, Any]:
    """The row of one engine; see measure_all."""
    return measure_all(bundle_path, data, [(engine, options)], repeats)[0]


def measure_all(
    bundle_path: Path, data: Path, choices: Sequence[Choice], repeats: int, skip: bool = False
) -> list[dict[str, Any]]:
    """One row for each choice: accuracy over the test images of `data`, speed over `repeats` passes.

    An engine that cannot be opened raises; with `skip` it is named and left out. Raises the known errors.
    """
    samples = open_data(data).test
    if not samples or all(s.defect is None for s in samples) or all(s.defect for s in samples):
        raise DataError(
            f"data {data}: accuracy needs good and defective test images; see --data in the README"
        )
    bundle = read_bundle(bundle_path)
    bits = int(bundle.manifest.provenance.get("train_bits", "8"))
    bars = Bars()
    with ExitStack() as stack:
        runs = _open(bundle, choices, skip, stack)
        for i, sample in enumerate(samples):
            image = read_image(sample.path, None if bits == 8 else bits)
            for run in runs:
                run.judge(
                    image, WARM_UP if i == 0 else 0, SETTLE_S if len(runs) > 1 else 0.0, repeats
                )
            bars(bundle_path.name, i + 1, len(samples))
        bars.close()
        rows = [_row(run, bundle, data, samples) for run in runs]
    _compare(rows, runs, bundle)
    return rows


class _Run:
    """An engine amid its measurement. `key` is its name and precision."""

    def __init__(self, detector: Detector, name: str, threads: int | None) -> None:
        self.detector, self.threads = detector, threads
        self.key = (name, detector.engine.precision)
        self.times: list[float] = []
        self.scores: list[float] = []
        self.maps: list[Any] = []

    def judge(self, image: Any, warm_up: int, settle_s: float, repeats: int) -> None:
        settled = time.perf_counter() + settle_s
        while warm_up > 0 or time.perf_counter() < settled:
            self.detector(image)
            warm_up -= 1
        for _ in range(repeats):
            verdict = self.detector(image)
            self.times.append(sum(verdict.milliseconds.values()))
        self.scores.append(verdict.score)
        assert verdict.anomaly_map is not None
        self.maps.append(verdict.anomaly_map.copy())


def _open(bundle: Bundle, choices: Sequence[Choice], skip: bool, stack: ExitStack) -> list[_Run]:
    runs = []
    for name, options in choices:
        try:
            detector = stack.enter_context(Detector(bundle, name, options))
        except (EngineError, BundleError) as error:
            if not skip:
                raise
            log(f"note: left out {name} {options.precision}: {error}")
            continue
        chosen = next((n for n in ENGINES if missing(n) is None), name) if name == "auto" else name
        runs.append(_Run(detector, chosen, options.threads))
    if not runs:
        raise EngineError(f"no engine could be opened for {bundle.path}; see the notes above")
    return runs


def _row(run: _Run, bundle: Bundle, data: Path, samples: Any) -> dict[str, Any]:
    geometry, precision = bundle.manifest.geometry, run.key[1]
    labels = np.array([s.defect is not None for s in samples])
    return {
        "bundle": bundle.path.name,
        "method": bundle.manifest.method,
        "backbone": bundle.manifest.backbone,
        "weights": bundle.manifest.provenance.get("train_weights", "unknown"),
        "data": data.name,
        "input": f"{geometry.width}x{geometry.height} {geometry.kind}",
        "batch": 1,
        "engine": run.detector.engine.description,
        "precision": precision,
        "threads": run.threads or "all",
        "device": cpu_name(),
        "images": len(samples),
        **_accuracy(labels, np.array(run.scores), samples, np.array(run.maps), geometry),
        **percentiles(run.times),
        "model_sha256": bundle.model_sha256(
            precision if precision in bundle.precisions else "fp32"
        )[:16],
        "versions": versions(),
    }


def _compare(rows: list[dict[str, Any]], runs: Sequence[_Run], bundle: Bundle) -> None:
    """Add to each row its speed and its flipped verdicts against ONNX Runtime in FP32; None where that did not run.

    A flip is clear where the reference's score lies farther from the threshold than the manifest's tolerance.
    """
    threshold, tolerance = bundle.calibration.threshold, bundle.manifest.score_tolerance
    reference = next((run for run in runs if run.key == REFERENCE), None)
    for row, run in zip(rows, runs, strict=True):
        row.update(speedup=None, flips=None, clear_flips=None)
        if reference is not None:
            expected, got = np.array(reference.scores), np.array(run.scores)
            flipped = (got > threshold) != (expected > threshold)
            row["flips"] = int(flipped.sum())
            row["clear_flips"] = int((flipped & ~(np.abs(expected - threshold) <= tolerance)).sum())
            row["speedup"] = round(float(np.median(reference.times) / np.median(run.times)), 2)


def choose(engines: Sequence[str], precision: str, threads: int | None) -> list[Choice]:
    """What `--engines` and `--precision` mean: `all` engines are those that can be used here, and where no precision is
    named, in each that they run.
    """
    every = "all" in engines
    names = [n for n in ENGINES if missing(n) is None] if every else engines
    options = EngineOptions(threads, precision)
    if precision != "all" and not (every and precision == "auto"):
        return [(name, options) for name in names]
    return [
        (name, replace(options, precision=p))
        for name in names
        for p in (resolve_name(ENGINES[name]).precisions if name in ENGINES else ("auto",))
    ]


def _accuracy(
    labels: Any, scores: Any, samples: Any, maps: Any, geometry: Any
) -> dict[str, float | None]:
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
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        help="one data set for all bundles, or one each",
    )
    parser.add_argument(
        "--engines", "--engine", nargs="+", default=["auto"],
        help=f"auto, {', '.join(ENGINES)}; all: what can be used here, in every precision",
    )  # fmt: skip
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "all", *PRECISIONS),
        help="default auto",
    )
    parser.add_argument("--threads", type=int, help="CPU threads of the engine; default all")
    parser.add_argument(
        "--repeats", type=int, default=3, help="timed passes over each image; default %(default)s"
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="default %(default)s")
    args = parser.parse_args(argv)
    if len(args.data) not in (1, len(args.bundles)):
        parser.error(f"--data takes 1 or {len(args.bundles)} data sets, one per bundle")
    data = args.data * len(args.bundles) if len(args.data) == 1 else args.data
    rows = []
    try:
        choices = choose(args.engines, args.precision, args.threads)
        for bundle, data_set in zip(args.bundles, data, strict=True):
            rows += measure_all(
                bundle,
                data_set,
                choices,
                args.repeats,
                skip="all" in (*args.engines, args.precision),
            )
    except (BundleError, EngineError, CameraError, DataError) as error:
        log(f"flawline-bench: {error}")
        return 2
    for path in write_report(rows, args.out):
        log(f"wrote {path}")
    print(json.dumps([{k: v for k, v in row.items() if k != "versions"} for row in rows], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
