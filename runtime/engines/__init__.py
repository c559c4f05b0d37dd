"""Engines: what runs a bundle's graph. One dictionary, one interface, one self-test at every load."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Protocol

import numpy as np

from flawline import FlawlineError
from flawline.runtime.bundle import Bundle, Manifest
from flawline.runtime.image import Image, Map

# name -> "module:Class", resolved when used. The class has `open(bundle, options)` and `missing()`, both static, and
# `precisions`, of which the first is its default. `untested`, where it has it, names what was not run yet.
ENGINES = {
    "tensorrt": "flawline.runtime.engines.tensorrt.engine:TensorRt",
    "tensorrt-rtx": "flawline.runtime.engines.tensorrt.engine:TensorRtRtx",
    "onnxruntime": "flawline.runtime.engines.onnxruntime_cpu:OnnxRuntime",
    "openvino": "flawline.runtime.engines.openvino_cpu:OpenVino",
}


# What a precision's scores and maps may be off, in the manifest's tolerances (a twentieth of the good images' spread),
# by what was seen: FP16 6 % of the spread, BF16 20 % and 36 %, INT8 64 % and 215 %. The last two are never a default
# and want a threshold of their own (python -m runtime.calibrate). A golden verdict that flips is refused in any.
TOLERANCE_FACTOR = {
    "fp32": (1.0, 1.0),
    "fp16": (2.0, 2.0),
    "bf16": (10.0, 10.0),
    "int8": (20.0, 60.0),
}


class EngineError(FlawlineError):
    """The engine cannot run this bundle; the message is one line and ends with the remedy."""


@dataclass(frozen=True)
class EngineOptions:
    """`threads` limits the threads of a CPU engine; `precision` is auto (the engine's own default), fp32, fp16, bf16
    or int8; `cache` is where compiled plans are kept, the bundle's own engines/ where it is None.
    """

    threads: int | None = None
    precision: str = "auto"
    cache: Path | None = None


class Engine(Protocol):
    """Runs the graph: uint8 [N, H, W, 3] BGR to score float32 [N] and map float32 [N, H, W] ([N, 0, 0] where the
    bundle was built for the score alone).

    The returned arrays belong to the engine and are overwritten by the next call: copy what is to be kept.
    `description` names library, version, device and `precision`. Not for use from several threads at once.
    """

    description: str
    precision: str

    def __call__(self, image: Image) -> tuple[Map, Map]: ...

    def close(self) -> None: ...


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of every command that runs a bundle; `options_from` reads them."""
    parser.add_argument("--engine", default="auto", help=f"auto, {', '.join(ENGINES)}")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", *TOLERANCE_FACTOR),
        help="default %(default)s",
    )
    parser.add_argument("--threads", type=int, help="threads of a CPU engine; default all")
    parser.add_argument(
        "--engine-cache",
        type=Path,
        metavar="DIR",
        help="for compiled plans; default BUNDLE/engines",
    )


def options_from(args: argparse.Namespace) -> EngineOptions:
    if args.threads is not None and args.threads < 1:
        raise EngineError(f"--threads {args.threads} is not at least 1; leave it out to use all")
    return EngineOptions(args.threads, args.precision, args.engine_cache)


def tolerances(manifest: Manifest, precision: str) -> tuple[float, float]:
    """What scores and maps of this precision may be off, absolute."""
    score, heat = TOLERANCE_FACTOR[precision]
    return score * manifest.score_tolerance, heat * manifest.map_tolerance


def missing(name: str) -> str | None:
    """Why this engine cannot be used here and what to install; None where it can."""
    try:
        why: Callable[[], str | None] = resolve_name(ENGINES[name]).missing
    except ImportError as error:
        return str(error)
    return why()


def open_engine(bundle: Bundle, name: str = "auto", options: EngineOptions | None = None) -> Engine:
    """Open an engine for this bundle and prove it on the bundle's golden images. Raises EngineError.

    `auto` takes the first of ENGINES that can be used here.
    """
    options = options or EngineOptions()
    if name == "auto":
        name = next((n for n in ENGINES if missing(n) is None), "")
        if not name:
            raise EngineError(
                f"no engine can be used here; {'; '.join(f'{n}: {missing(n)}' for n in ENGINES)}"
            )
    if name not in ENGINES:
        raise EngineError(f"engine {name!r} is unknown; known: auto, {', '.join(ENGINES)}")
    if why := missing(name):
        raise EngineError(f"engine {name}: {why}")
    target = resolve_name(ENGINES[name])
    if options.precision == "auto":
        options = replace(options, precision=target.precisions[0])
    if options.precision not in target.precisions:
        raise EngineError(
            f"engine {name} does not run {options.precision}; it runs {', '.join(target.precisions)}: see --precision"
        )
    engine: Engine = target.open(bundle, options)
    try:
        self_test(engine, bundle)
    except BaseException:
        engine.close()
        raise
    return engine


def self_test(engine: Engine, bundle: Bundle) -> float:
    """Run the golden images; the largest score error. Raises EngineError past the manifest's tolerances.

    Golden scores lie farther from the threshold than the tolerance, so a decision that flips is always refused.
    """
    golden = bundle.golden()
    worst = 0.0
    for i, (image, score, heat) in enumerate(
        zip(golden.images, golden.scores, golden.maps, strict=True)
    ):
        got_score, got_map = engine(image[None])
        error, map_error = (
            float(abs(got_score[0] - score)),
            float(np.max(np.abs(got_map[0] - heat), initial=0.0)),
        )
        if why := _drift(bundle, engine.precision, float(got_score[0]), float(score), map_error):
            raise EngineError(
                f"{engine.description} fails the self-test of {bundle.path}: golden image {i} {why}; "
                f"update the engine, choose another --engine, or build the bundle again"
            )
        worst = max(worst, error)
    return worst


def _drift(
    bundle: Bundle, precision: str, got: float, expected: float, map_error: float
) -> str | None:
    """What is wrong with the result of a golden image, and by how much; None where it is within tolerance."""
    manifest, threshold = bundle.manifest, bundle.calibration.threshold
    error, flipped = abs(got - expected), (got > threshold) != (expected > threshold)
    tolerance, map_tolerance = tolerances(manifest, precision)
    if flipped or not error <= tolerance:  # also when it is NaN
        flips = ", so its verdict flips" if flipped else ""
        return (
            f"scores {got:.6g} instead of {expected:.6g} (threshold {threshold:.6g}{flips}): "
            f"off by {error:.3g} where {tolerance:.3g} is tolerated"
        )
    if not map_error <= map_tolerance:
        return f"has a map off by {map_error:.3g} where {map_tolerance:.3g} is tolerated"
    return None
