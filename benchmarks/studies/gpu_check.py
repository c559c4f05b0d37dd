"""python -m benchmarks.gpu_check: what a GPU does with one network, from the authors' eager code to an FP16 plan.

    python -m benchmarks.gpu_check --backbone wide_resnet50_2 --size 288 --out benchmarks/results

One run of a few minutes, random weights from a seed, everything in turns: the published pipeline and the fused form
in torch eager, the fused form compiled in FP16, and every GPU engine in FP32 and FP16 with and without CUDA graph, at
batch 1 and at growing batches. Each row holds the drift against torch in FP32, and time end to end: uint8 image on the
host in, score (and map) on the host out.
"""

from __future__ import annotations

from flawline.train import require_extra

require_extra("benchmarks.gpu_check")

import argparse
import json
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch

from flawline.benchmarks.measure.timing import percentiles
from flawline.benchmarks.published import PUBLISHED
from flawline.benchmarks.studies.fusion import build_method
from flawline.cameras import CameraError
from flawline.export.graphs.to_fp16 import to_fp16
from flawline.export.graphs.to_onnx import onnx_from_module
from flawline.runtime.bundle import (
    OUTPUTS,
    Bundle,
    BundleError,
    Calibration,
    Golden,
    Manifest,
    Spread,
    write_bundle,
)
from flawline.runtime.console import log
from flawline.runtime.engines import ENGINES, EngineError, EngineOptions, missing
from flawline.runtime.environment import versions
from flawline.train import METHODS, TrainError
from flawline.train.backbones import BACKBONES
from flawline.train.blocks.fused import fp32_islands
from flawline.train.data.images import DataError
from flawline.train.method import Method

GPU_ENGINES = ("tensorrt", "tensorrt-rtx")
BATCHES = (1, 8, 32)
IMAGES = 8  # that drift is told on
CALLS_S = 1.5  # seconds that a row is timed in each of its two turns
WARM_UP = 20

Call = Callable[[Any], Any]  # uint8 [N, H, W, 3] on the host to score [N] and map on the host


def torch_calls(method: Method, device: torch.device) -> Iterator[tuple[str, Call]]:
    """What torch itself makes of it. Inputs are uploaded and results downloaded in every call."""

    def on_device(module: Any, image: Any) -> Any:
        with torch.inference_mode():
            return tuple(
                x.float().cpu().numpy() for x in module(torch.from_numpy(image).to(device))
            )

    published = PUBLISHED[method.name][0](method).eval().to(device)
    yield "torch eager fp32, as published", partial(on_device, published)
    yield "torch eager fp32, fused", partial(on_device, method.fused().to(device))
    half = method.fused().half().to(device)
    yield "torch eager fp16, fused", partial(on_device, half)
    if device.type == "cuda":
        compiled = torch.compile(half, mode="max-autotune-no-cudagraphs", dynamic=False)
        yield "torch.compile fp16, fused", partial(on_device, compiled)


def engine_calls(bundle: Bundle, stack: ExitStack) -> Iterator[tuple[str, Call]]:
    """Every GPU engine that can be used here, through the engine that users run."""
    for name in GPU_ENGINES:
        if why := missing(name):
            log(f"note: no {name} ({why})")
            continue
        for precision in ("fp32", "fp16"):
            for graph in (False, True):
                engine = resolve_name(ENGINES[name]).open(
                    bundle, EngineOptions(precision=precision)
                )
                stack.callback(engine.close)
                engine.uses_graph &= graph
                if graph and not engine.uses_graph and name == "tensorrt":
                    continue
                told = f"{engine.description}{', CUDA graph' if graph else ''}"
                yield told, engine
                if graph:
                    yield f"{told}, score only", _score_only(engine)


def _score_only(engine: Any) -> Call:
    def call(image: Any) -> Any:
        engine.wants_map = False
        try:
            return engine(image)
        finally:
            engine.wants_map = True

    return call


def bundle_of(method: Method, images: Any, folder: Path) -> Bundle:
    """A bundle around this network, whose tolerances are wide: drift is reported here, not refused."""
    with torch.inference_mode():
        score, heat = (x.numpy() for x in method(torch.from_numpy(images)))
    fused = method.fused()
    fp32 = onnx_from_module(fused, method.geometry)
    spread, tolerance = Spread.of(score), 10 * float(np.ptp(heat)) + 1.0
    islands = fp32_islands(fused)
    manifest = Manifest(
        method.name,
        method.settings.backbone,
        method.geometry,
        spread,
        spread,
        tolerance,
        tolerance,
        islands,
        OUTPUTS,
        {},
    )
    calibration = Calibration(float(score.max()) + tolerance, 0.5, (0.0, 1.0), 0.95, 1)
    models = {"fp32": fp32, "fp16": to_fp16(fp32, islands)}
    return write_bundle(
        folder / "bundle", manifest, calibration, models, Golden(images, score, heat)
    )


def measure(
    calls: dict[str, Call], images: Any, reference: Any, until: float
) -> list[dict[str, Any]]:
    """A row for each call and batch, in turns A B A B; what does not fit before `until` is named and left out."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    times: dict[tuple[str, int], list[float]] = {}
    for turn in range(2):
        for batch in BATCHES:
            for name, call in calls.items():
                if time.monotonic() > until:
                    log(f"note: out of time before {name}, batch {batch}")
                    continue
                image = np.ascontiguousarray(np.resize(images, (batch, *images.shape[1:])))
                if turn == 0:
                    scores = np.concatenate([np.copy(call(one[None])[0]) for one in images])
                    drift = float(np.abs(scores - reference).max() / reference.std())
                    rows[name, batch] = {"call": name, "batch": batch, "drift": drift}
                times.setdefault((name, batch), []).extend(_time(partial(call, image)))
    for key, found in times.items():
        if key in rows:
            rows[key].update(
                percentiles(found), images_per_s=round(1e3 * key[1] / float(np.median(found)), 1)
            )
    return list(rows.values())


def _time(call: Callable[[], Any]) -> list[float]:
    """Milliseconds of each call over `CALLS_S` seconds; every call ends with its result on the host."""
    for _ in range(WARM_UP):
        call()
    times: list[float] = []
    end = time.perf_counter() + CALLS_S
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def markdown(about: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The table, and every row's speed over the published pipeline at the same batch."""
    slow = {r["batch"]: r["p50_ms"] for r in rows if r["call"].endswith("as published")}
    lines = [
        f"{about['method']}, {about['backbone']}, {about['input']}, random weights; {about['device']}",
        "",
        "| | batch | p50 ms | p95 ms | p99 ms | images/s | times published | drift |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        ratio = f"{slow[r['batch']] / r['p50_ms']:.2f}" if r["batch"] in slow else ""
        cells = (
            r["call"],
            r["batch"],
            r["p50_ms"],
            r["p95_ms"],
            r["p99_ms"],
            r["images_per_s"],
            ratio,
        )
        lines.append("| " + " | ".join(map(str, cells)) + f" | {r['drift']:.1e} |")
    lines += [
        "",
        "End to end from host to host. Drift: the largest of a score from torch's, of their spread.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_check", description="Engines of a GPU, measured in one run."
    )
    parser.add_argument("--method", default="simplenet", help=f"one of {', '.join(METHODS)}")
    parser.add_argument("--backbone", default="wide_resnet50_2", choices=BACKBONES)
    parser.add_argument(
        "--size", type=int, default=288, help="input height and width; default %(default)s"
    )
    parser.add_argument(
        "--weights", default="random", help="speed does not depend on them; default %(default)s"
    )
    parser.add_argument(
        "--device", default="cuda", help="default %(default)s; cpu tries the command out"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="at most; default %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--data", type=Path, help="images to tell drift on; default the demo's board"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write DIR/DEVICE/gpu-METHOD-BACKBONE-SIZE.{json,md}",
    )
    args = parser.parse_args(argv)
    until = time.monotonic() + 60 * args.minutes
    if args.device != "cpu" and not torch.cuda.is_available():
        log(
            "benchmarks.gpu_check: torch finds no GPU here; run it on a machine that has one, or try --device cpu"
        )
        return 2
    device = torch.device(args.device)
    try:
        method, images = build_method(args, IMAGES)
        with tempfile.TemporaryDirectory(prefix="flawline-") as folder, ExitStack() as stack:
            bundle = bundle_of(method, images, Path(folder))
            reference = bundle.golden().scores
            engines = dict(engine_calls(bundle, stack)) if device.type == "cuda" else {}
            rows = measure(
                {**dict(torch_calls(method, device)), **engines}, images, reference, until
            )
    except (BundleError, CameraError, DataError, EngineError, TrainError) as error:
        log(f"benchmarks.gpu_check: {error}")
        return 2
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or "cpu"
    )
    size = f"{method.geometry.width}x{method.geometry.height}"
    about = {
        "method": method.name,
        "backbone": method.settings.backbone,
        "input": size,
        "device": name,
        "versions": versions(),
    }
    table = markdown(about, rows)
    print(table)
    if args.out is not None:
        folder_name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        stem = (
            args.out
            / folder_name
            / f"gpu-{method.name}-{method.settings.backbone}-{method.geometry.height}"
        )
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".md").write_text(table + "\n")
        stem.with_suffix(".json").write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
