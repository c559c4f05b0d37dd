"""The last step of a build: the engine of this machine, compiled if it compiles, tested and timed.

Needs neither torch nor onnx.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flawline.commands import command_line, command_line_elsewhere
from flawline.export.measured_choice import choose_by_measurement, input_name
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log
from flawline.runtime.engines import (
    ENGINES,
    Engine,
    EngineError,
    EngineOptions,
    engine_class,
    engines_of_machine,
    missing,
    open_engine,
)
from flawline.runtime.engines.auto import calibrate_command
from flawline.runtime.scored_by import scored_by
from flawline.runtime.timing import time_calls

TIMED_SECONDS = 1.0
# The value of --engine that leaves out this step.
NO_ENGINE = "none"


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of all engines that compile; `read_build_options` reads them."""
    # Engines may share a flag, which is then listed once.
    group = parser.add_argument_group("compiled engines", conflict_handler="resolve")
    for name in ENGINES:
        engine_class(name).add_build_arguments(group)


def read_build_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the build options of the engine that --engine selects, by the name of the engine.

    With `auto` these are those of every engine that can be used. An engine without such flags has
    None. Raises EngineError for a flag that was given and that none of these engines has, because
    ignoring it would build another engine than was asked for.
    """
    selected: list[str] = []
    if args.engine == "auto":
        selected = list(engines_of_machine().usable)
    elif args.engine != NO_ENGINE:
        selected = [args.engine]
    flags: set[str] = set()
    for name in selected:
        flags |= _build_flags(engine_class(name))
    for other in ENGINES:
        for flag in sorted(_build_flags(engine_class(other)) - flags):
            if getattr(args, flag) is not None:
                raise EngineError(_unused_flag(args.engine, flag))
    return {name: engine_class(name).build_options(args) for name in selected}


def _build_flags(kind: type[Engine]) -> set[str]:
    """Return the names of an engine's build flags, as they are in the parsed arguments."""
    parser = argparse.ArgumentParser(add_help=False)
    kind.add_build_arguments(parser)
    return set(vars(parser.parse_args([])))


def _unused_flag(engine: str, name: str) -> str:
    flag = "--" + name.replace("_", "-")
    users = []
    for other in ENGINES:
        if name in _build_flags(engine_class(other)):
            users.append(other)
    return (
        f"--engine {engine} does not use {flag} on this machine; leave it out, "
        f"or choose --engine {' or '.join(users)}"
    )


def prepare_local_engine(
    bundle: Bundle,
    name: str,
    options: EngineOptions,
    build_options: Mapping[str, Any],
    data: Path | None = None,
) -> None:
    """Compile an engine for this machine, run its self-test and time it.

    An engine that compiles but cannot run on this machine, because it builds for another one, is
    compiled only.

    Args:
        bundle: the bundle to run; plans are stored with it.
        name: an engine of ENGINES, or "auto" for the fastest, which is measured and recorded.
        options: how the engine is opened.
        build_options: what a compiled plan is built for, as `read_build_options` returns it.
        data: the data set of the bundle, which `auto` compares lossy precisions on.

    Raises EngineError if it cannot be built or opened or fails its self-test, and BundleError if
    the bundle has no graph of this precision.
    """
    if name == "auto":
        chosen = choose_by_measurement(bundle, options, build_options, data)
        compiling = _compiling_engines()
        if not engine_class(chosen.engine).compiles and compiling:
            log(
                f"on a machine for {' or '.join(compiling)}, run: "
                f"{build_command(bundle, compiling[0], elsewhere=True)}"
            )
        return
    # It may be one that can only compile on this machine, so it need not run yet.
    kind = engine_class(name)
    if kind.compiles:
        _compile(bundle, kind, options, build_options.get(name))
        reason = missing(name)
        if reason is not None:
            log(
                f"the plan cannot run on this machine ({reason}); copy the bundle to the machine "
                f"that inspects and stream there with --engine {name}"
            )
            return
    _test_and_time(bundle, name, options)


def needs_own_threshold(bundle: Bundle, name: str, options: EngineOptions) -> bool:
    """Tell whether an engine of ENGINES was named in a lossy precision that the threshold lacks."""
    if name not in ENGINES or options.precision == "auto":
        return False
    scored = scored_by(name, options.precision)
    return scored is not None and scored != bundle.calibration.scored_by


def log_threshold_remedy(bundle: Bundle, name: str, options: EngineOptions) -> None:
    """Log how to set the threshold with the scores of an engine."""
    command = calibrate_command(bundle, name, options.precision, options)
    log(
        f"the threshold was not set with the scores of {name} {options.precision}, which are "
        f"different enough to need their own; set it where the engine runs: {command}"
    )


def build_command(bundle: Bundle, engine: str, elsewhere: bool = False) -> str:
    """Return the command that builds an engine's plan into the engines/ folder of a bundle.

    It names a precision if the bundle lacks the graph of the engine's default. On a machine
    elsewhere, the bundle has the same name and another place.
    """
    if elsewhere:
        command = command_line_elsewhere("build", "--bundle", bundle.path.name, "--engine", engine)
    else:
        command = command_line("build", "--bundle", bundle.path, "--engine", engine)
    precisions = engine_class(engine).precisions
    if precisions[0] in bundle.precisions:
        return command
    for precision in precisions:
        if precision in bundle.precisions:
            return f"{command} --precision {precision}"
    return command


def _compiling_engines() -> list[str]:
    names = []
    for name in ENGINES:
        if engine_class(name).compiles:
            names.append(name)
    return names


def _compile(
    bundle: Bundle, kind: type[Engine], options: EngineOptions, build_options: Any
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
        log(
            f"engine {engine.description}: self-test passed, {milliseconds:.1f} ms per "
            f"{input_name(bundle)}"
        )
    finally:
        engine.close()
