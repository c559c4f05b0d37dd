"""The last step of a build: the engine of this machine, compiled if it compiles, tested and timed.

Needs neither torch nor onnx.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace

from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log
from flawline.runtime.engines import (
    Engine,
    EngineError,
    EngineOptions,
    choose_engine,
    engine_class,
    missing,
    open_engine,
)
from flawline.runtime.engines.tensorrt.plan_cache import BuildOptions
from flawline.runtime.timing import time_calls

TIMED_SECONDS = 1.0


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of engines that compile plans; `plan_options` reads them."""
    group = parser.add_argument_group("compiled engines")
    group.add_argument(
        "--sm",
        type=int,
        action="append",
        help="tensorrt-rtx: build for this compute capability (86, 89, 120); repeat for several",
    )
    group.add_argument(
        "--opt-batch", type=int, default=1, help="batch size to optimise for; default %(default)s"
    )
    group.add_argument(
        "--max-batch", type=int, default=8, help="largest batch size; default %(default)s"
    )
    group.add_argument("--dla", type=int, metavar="CORE", help="DLA core of a Jetson")


def plan_options(args: argparse.Namespace) -> BuildOptions:
    """Read the flags of `add_plan_arguments`. Raises EngineError."""
    return BuildOptions(
        opt_batch=args.opt_batch,
        max_batch=args.max_batch,
        dla=args.dla,
        capabilities=tuple(args.sm or ()),
    )


def build_engine_here(
    bundle: Bundle, name: str, options: EngineOptions, build_options: BuildOptions
) -> None:
    """Compile an engine for this machine, run its self-test and time it.

    An engine that compiles but cannot run here, such as tensorrt-rtx without a GPU, is compiled
    only.

    Args:
        bundle: the bundle to run; plans are stored with it.
        name: an engine of ENGINES, or "auto" for the first that can be used here.
        options: a precision that the automatic engine does not run is replaced by its default.
        build_options: what a compiled plan is built for.

    Raises EngineError if it cannot be built or opened or fails its self-test, and BundleError if
    the bundle has no graph of this precision.
    """
    # A named engine may be one that only compiles here, so that it is not required to run yet.
    chosen = choose_engine() if name == "auto" else name
    kind = engine_class(chosen)
    if name == "auto" and options.precision not in ("auto", *kind.precisions):
        log(
            f"note: {chosen}, the engine of this machine, does not run {options.precision}; "
            f"its default is used instead"
        )
        options = replace(options, precision="auto")
    if kind.compiles:
        _compile(bundle, kind, options, build_options)
        reason = missing(chosen)
        if reason is not None:
            log(
                f"the plan cannot run here ({reason}); copy the bundle to the machine that "
                f"inspects and stream there with --engine {chosen}"
            )
            return
    elif build_options.capabilities:
        raise EngineError(
            f"engine {chosen} compiles nothing; --sm belongs to --engine tensorrt-rtx"
        )
    _test_and_time(bundle, chosen, options)
    if name == "auto" and not kind.compiles:
        log(
            f"on a machine with an NVIDIA GPU, run: "
            f"python -m export.build --bundle {bundle.path} --engine tensorrt"
        )


def _compile(
    bundle: Bundle, kind: type[Engine], options: EngineOptions, build_options: BuildOptions
) -> None:
    precision = options.precision
    if precision == "auto":
        precision = kind.precisions[0]
    path = kind.build(bundle, precision, build_options, options.cache)
    log(f"plan {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _test_and_time(bundle: Bundle, name: str, options: EngineOptions) -> None:
    """Open the engine, which runs its self-test, and log the median time of one golden image."""
    engine = open_engine(bundle, name, options)
    try:
        image = bundle.golden().images[:1]
        # The self-test has warmed the engine up.
        times = time_calls(lambda: engine(image), warm_up=0, seconds=TIMED_SECONDS)
        milliseconds = statistics.median(times)
        log(f"engine {engine.description}: self-test passed, {milliseconds:.1f} ms per image")
    finally:
        engine.close()
