"""Engines run the graph of a bundle, and pass a self-test whenever they are opened.

A new engine is one file with a subclass of `Engine`, and one line in `ENGINES`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flawline.registry import resolve
from flawline.runtime.bundle import Bundle
from flawline.runtime.command_parser import path_argument, text_argument
from flawline.runtime.engines.auto import Machine, owner_unusable, select_engine
from flawline.runtime.engines.base import (
    Engine,
    EngineError,
    EngineOptions,
    EngineUnavailable,
    cache_folder,
)
from flawline.runtime.engines.choice import is_owner
from flawline.runtime.engines.golden_test import self_test
from flawline.runtime.precisions import PRECISIONS

__all__ = [
    "ENGINES",
    "REFERENCE_ENGINE",
    "Engine",
    "EngineError",
    "EngineOptions",
    "EngineUnavailable",
    "add_engine_arguments",
    "add_server_argument",
    "add_streams_argument",
    "cache_folder",
    "engine_class",
    "engine_options",
    "engines_of_machine",
    "missing",
    "open_engine",
    "open_reference",
    "require_options",
    "require_server",
    "require_usable",
    "self_test",
    "unusable_here",
]

# Name -> "module:Class", resolved when it is used. Where nothing was measured, `auto` takes the
# first that can be used.
ENGINES = {
    "tensorrt": "flawline.runtime.engines.tensorrt.engine:TensorRt",
    "tensorrt-rtx": "flawline.runtime.engines.tensorrt.engine:TensorRtRtx",
    "onnxruntime": "flawline.runtime.engines.onnxruntime_cpu:OnnxRuntime",
    "openvino": "flawline.runtime.engines.openvino_cpu:OpenVino",
    "kserve": "flawline.runtime.engines.kserve.engine:KServe",
}

# The engine of `open_reference`, whose scores the other engines are compared with.
REFERENCE_ENGINE = "onnxruntime"


def add_engine_arguments(parser: argparse.ArgumentParser, extra: tuple[str, ...] = ()) -> None:
    """Add the flags of every command that opens an engine; `engine_options` reads them.

    `extra` are further values of --engine that the command handles itself.
    """
    names = ", ".join(("auto", *extra, *ENGINES))
    parser.add_argument(
        "--engine",
        default="auto",
        help=f"{names}; auto is the fastest that flawline build --engine auto measured here, "
        "or else the first that can be used; default %(default)s",
    )
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", *PRECISIONS),
        help="auto is the default of the engine, or the precision that was measured with it; "
        "default %(default)s",
    )
    parser.add_argument(
        "--threads",
        type=int,
        help="threads of a CPU engine; default: the cores that this process may use",
    )
    parser.add_argument(
        "--engine-cache",
        type=path_argument,
        metavar="DIR",
        help="folder for compiled plans and measured times; default BUNDLE/engines",
    )
    add_server_argument(parser)


def add_server_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flag --server, the address for engines with `needs_server`."""
    parser.add_argument(
        "--server",
        type=text_argument,
        metavar="URI",
        help="the server of an engine that computes on one, such as grpc://HOST:PORT/MODEL",
    )


def add_streams_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flag --streams of the commands that judge more images than one after the other."""
    parser.add_argument(
        "--streams",
        type=int,
        metavar="N",
        help="throughput mode: the engine computes N images at the same time, each with its share "
        "of --threads: more images per second, and each of them takes longer; default: one image "
        "after the other",
    )


def engine_options(args: argparse.Namespace) -> EngineOptions:
    """Read the flags of `add_engine_arguments`, except --engine. Raises EngineError."""
    streams = getattr(args, "streams", None)
    return EngineOptions(args.threads, args.precision, args.engine_cache, streams, args.server)


def engine_class(name: str) -> type[Engine]:
    """Import the class of an engine of ENGINES. Raises EngineError for an unknown name."""
    target: type[Engine] = resolve(ENGINES, name, "engine", EngineError)
    return target


def missing(name: str) -> str | None:
    """Say what must be installed to use an engine of ENGINES; None if nothing is missing."""
    try:
        return engine_class(name).missing()
    except ImportError as error:
        return str(error)


def unusable_here(name: str) -> str | None:
    """Say why an engine of ENGINES cannot compute on this machine; None if it can."""
    reason = missing(name)
    if reason is None and engine_class(name).needs_server:
        return f"computes on a server, with --engine {name} {engine_class(name).usage}"
    return reason


def require_usable(name: str) -> type[Engine]:
    """Return the class of an engine of ENGINES.

    Raises EngineError, with what is missing, for an engine that cannot be used.
    """
    kind = engine_class(name)
    reason = missing(name)
    if reason is not None:
        raise EngineError(f"engine {name}: {reason}")
    return kind


def require_precision(name: str, precision: str) -> None:
    """Refuse a precision that an engine of ENGINES does not have, or not on this machine.

    Raises EngineError, also for an engine that cannot be used.
    """
    kind = require_usable(name)
    if precision not in kind.precisions:
        raise EngineError(
            f"engine {name} does not run {precision}; "
            f"it runs {', '.join(kind.precisions)}: see --precision"
        )
    reason = kind.unsuited(precision)
    if reason is not None:
        raise EngineError(reason)


def engines_of_machine() -> Machine:
    """Ask each engine of ENGINES whether it can compute here. Raises EngineError if none can."""
    usable = {}
    reasons = {}
    for name in ENGINES:
        reason = unusable_here(name)
        if reason is None:
            usable[name] = engine_class(name)
        else:
            reasons[name] = reason
    if not usable:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise EngineError(f"no engine can be used on this machine; {listed}")
    return Machine(usable, reasons)


def open_engine(bundle: Bundle, name: str = "auto", options: EngineOptions | None = None) -> Engine:
    """Open an engine for a bundle and run its self-test.

    `auto` is chosen as `select_engine` says. Raises EngineError or BundleError.
    """
    options = options or EngineOptions()
    if name != "auto":
        return _open_named(bundle, name, options)
    require_server(name, options)
    machine = engines_of_machine()
    selected = select_engine(bundle, options, machine)
    options = replace(options, precision=selected.precision)
    try:
        return _open_named(bundle, selected.engine, options)
    except EngineError as error:
        if is_owner(bundle.calibration.scored_by, selected.engine, selected.precision):
            raise owner_unusable(bundle, options, machine, str(error)) from error
        raise


def require_options(name: str, options: EngineOptions) -> type[Engine]:
    """Return the class of an engine of ENGINES that can be opened with these options.

    Raises EngineError for one that cannot be used, and for a precision or streams that it lacks.
    """
    target = require_usable(name)
    require_server(name, options)
    wanted = options.precision
    require_precision(name, target.precisions[0] if wanted == "auto" else wanted)
    if options.streams is not None and not target.offers_streams:
        raise EngineError(
            f"engine {name} computes one batch after the other and has no streams; "
            f"leave --streams out, or choose --engine {' or '.join(_with_streams())}"
        )
    return target


def _open_named(bundle: Bundle, name: str, options: EngineOptions) -> Engine:
    # Checked before the bundle is loaded, because compiling a plan takes minutes.
    target = require_options(name, options)
    if options.precision == "auto":
        options = replace(options, precision=target.precisions[0])
    engine = target.open(bundle, options)
    engine.name = name
    # Also Ctrl-C during the self-test must release the device.
    try:
        self_test(engine, bundle)
    except BaseException:
        engine.close()
        raise
    return engine


def require_server(name: str, options: EngineOptions) -> None:
    """Raise EngineError if an engine lacks its server, or was given one in vain.

    `name` is "auto" or one of ENGINES.
    """
    if name == "auto":
        if options.server is not None:
            raise _without_server(name)
        return
    kind = engine_class(name)
    if kind.needs_server and options.server is None:
        raise EngineError(f"engine {name} computes on a server; give its address: {kind.usage}")
    if options.server is not None and not kind.needs_server:
        raise _without_server(name)


def _without_server(name: str) -> EngineError:
    users = [other for other in ENGINES if engine_class(other).needs_server]
    return EngineError(
        f"--engine {name} computes on this machine; leave --server out, or choose --engine "
        f"{' or '.join(users)}"
    )


def _with_streams() -> list[str]:
    """Return the names of the engines that compute several batches at the same time."""
    return [name for name in ENGINES if engine_class(name).offers_streams]


def open_reference(
    model: bytes | Path,
    map_size: tuple[int, int],
    precision: str = "fp32",
    threads: int | None = None,
) -> Engine:
    """Open any graph, from memory or a file, with the engine that defines the reference scores.

    `map_size` is the height and width of the map, (0, 0) if the graph has none. `precision` is what
    the graph computes in, and only names it. There is no self-test. Raises EngineError.
    """
    create: Callable[..., Engine] = engine_class(REFERENCE_ENGINE)
    engine = create(model, map_size, threads, precision)
    engine.name = REFERENCE_ENGINE
    return engine
