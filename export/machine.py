"""The last step of a build: the engine of this machine, compiled where it compiles, proven and timed. No torch."""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name

from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log
from flawline.runtime.engines import (
    ENGINES,
    EngineError,
    engine_class,
    engine_options,
    missing,
    open_engine,
)
from flawline.runtime.engines.tensorrt.plan import BuildOptions

TIMED_S = 1.0


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine",
        default="auto",
        choices=("auto", "none", *ENGINES),
        help="auto takes the first that can be used here",
    )
    group.add_argument(
        "--engine-cache",
        type=Path,
        metavar="DIR",
        help="for compiled plans; default BUNDLE/engines",
    )
    group.add_argument("--threads", type=int, help="threads of a CPU engine; default all")
    group.add_argument(
        "--sm",
        type=int,
        action="append",
        help="tensorrt-rtx: for compute capability 86, 89, 120; repeat",
    )
    group.add_argument(
        "--opt-batch",
        type=int,
        default=1,
        help="batch that a plan runs fastest; default %(default)s",
    )
    group.add_argument(
        "--max-batch", type=int, default=8, help="largest batch of a plan; default %(default)s"
    )
    group.add_argument("--dla", type=int, help="a Jetson's DLA core")


def prepare_engine(bundle: Bundle, args: argparse.Namespace) -> None:
    """Compile, self-test and time what --engine names. Raises EngineError, BundleError."""
    name = args.engine
    if name == "none":
        return
    if name == "auto":
        name = next((n for n in ENGINES if missing(n) is None), "onnxruntime")
    compiles = engine_class(name).compiles
    if compiles:
        plan_options = BuildOptions(
            args.opt_batch,
            args.max_batch,
            args.dla,
            tuple(args.sm or ()),
        )
        precision = args.precision or "fp16"
        path = engine_class(name).build(bundle, precision, plan_options, args.engine_cache)
        log(f"plan {path} ({path.stat().st_size / 1e6:.1f} MB)")
        if why := missing(name):
            log(
                f"it cannot run here ({why}); copy the bundle to the box and stream there with --engine {name}"
            )
            return
    elif args.sm:
        raise EngineError(f"engine {name} compiles nothing; --sm goes with --engine tensorrt-rtx")
    options = engine_options(
        argparse.Namespace(**{**vars(args), "precision": args.precision or "auto"})
    )
    if args.engine == "auto" and options.precision not in (
        "auto",
        *resolve_name(ENGINES[name]).precisions,
    ):
        log(
            f"note: {name}, the engine of this machine, does not run {options.precision}; its default is tried instead"
        )
        options = replace(options, precision="auto")
    engine = open_engine(bundle, name, options)
    try:
        milliseconds = _time(engine, bundle)
        log(f"engine {engine.description}: self-test passed, {milliseconds:.1f} ms an image")
    finally:
        engine.close()
    if args.engine == "auto" and not compiles:
        log(
            f"on a box with an NVIDIA GPU: python -m export.build --bundle {bundle.path} --engine tensorrt"
        )


def _time(engine: object, bundle: Bundle) -> float:
    """Median milliseconds of one golden image over about a second, after the self-test has warmed the engine up."""
    assert callable(engine)
    image = bundle.golden().images[:1]
    times: list[float] = []
    end = time.perf_counter() + TIMED_S
    while time.perf_counter() < end or not times:
        start = time.perf_counter()
        engine(image)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)
