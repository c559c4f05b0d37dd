"""Engines run the graph of a bundle, and pass a self-test whenever they are opened.

A new engine is one file with a subclass of `Engine`, and one line in `ENGINES`.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from flawline import FlawlineError
from flawline.registry import resolve
from flawline.runtime.bundle import Bundle
from flawline.runtime.command_parser import path_argument
from flawline.runtime.cores import MAX_THREADS_PER_CORE, allowed_cores, max_threads
from flawline.runtime.image import Image, Map
from flawline.runtime.manifest import Manifest
from flawline.runtime.precisions import PRECISIONS
from flawline.runtime.threshold import flipped, tolerance_factor

# Name -> "module:Class", resolved when it is used. `auto` takes the first that can be used.
ENGINES = {
    "tensorrt": "flawline.runtime.engines.tensorrt.engine:TensorRt",
    "tensorrt-rtx": "flawline.runtime.engines.tensorrt.engine:TensorRtRtx",
    "onnxruntime": "flawline.runtime.engines.onnxruntime_cpu:OnnxRuntime",
    "openvino": "flawline.runtime.engines.openvino_cpu:OpenVino",
}

# The engine of `open_reference`, whose scores the other engines are compared with.
REFERENCE_ENGINE = "onnxruntime"


class EngineError(FlawlineError):
    """The engine cannot be used, or cannot run this bundle."""


@dataclass(frozen=True)
class EngineOptions:
    """Options of every engine.

    `threads` is the number of threads of a CPU engine, at most 4 for each core that this process
    may use; None uses these cores. `precision` is one of PRECISIONS,
    or "auto" for the engine's own default. `cache` is the folder for compiled plans; None uses
    engines/ of the bundle.
    """

    threads: int | None = None
    precision: str = "auto"
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise EngineError(
                f"--threads {self.threads} is not at least 1; leave it out to use all"
            )
        if self.threads is not None and self.threads > max_threads():
            raise EngineError(
                f"--threads {self.threads} is more than {MAX_THREADS_PER_CORE} for each of the "
                f"{allowed_cores()} cores that this process may use; give at most {max_threads()}"
            )


class Engine(ABC):
    """Runs the graph of a bundle on one device.

    Calling it turns uint8 [N, H, W, 3] BGR into scores float32 [N] and maps float32 [N, H, W]. The
    maps are [N, 0, 0] if the bundle was built for the score alone. Every N is accepted that the
    engine was built for.

    The returned arrays belong to the engine and may be overwritten by its next call: copy what is
    needed longer. An engine is not for use from several threads at once.
    """

    # The precisions of PRECISIONS that it runs; the first is its default.
    precisions: ClassVar[tuple[str, ...]]
    # The part that no test covers, for example "on a GPU"; None if there is none.
    untested: ClassVar[str | None] = None
    # True if it compiles plans, with `build`.
    compiles: ClassVar[bool] = False

    # The precision that this engine was opened with.
    precision: str
    # Library and version, device, and precision.
    description: str

    @classmethod
    @abstractmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> Engine:
        """Open the engine for a bundle; `options.precision` is one of `precisions`.

        Raises EngineError if it cannot run the bundle on this machine.
        """

    @classmethod
    @abstractmethod
    def missing(cls) -> str | None:
        """Say what must be installed before this engine can be used; None if it can be used."""

    @classmethod
    def build(
        cls, bundle: Bundle, precision: str, build_options: Any = None, cache: Path | None = None
    ) -> Path:
        """Compile the plan of a bundle, or take it from the cache; return its file.

        `build_options` are those of the engine; None takes their defaults. Raises EngineError.
        """
        raise EngineError(f"{cls.__name__} compiles no plans; leave the build options out")

    @classmethod  # noqa: B027
    def add_build_arguments(cls, parser: argparse._ActionsContainer) -> None:
        """Add the flags of `build` to a parser or to a group of its flags; by default none.

        The default of every flag is None, so that a flag that was given can be distinguished from
        one that was not. Engines may share a flag; it then has the same meaning.
        """

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> Any:
        """Read the flags of `add_build_arguments`, as `build` takes them. Raises EngineError.

        None stands for an engine that has no such flags.
        """
        return None

    @abstractmethod
    def __call__(self, image: Image) -> tuple[Map, Map]:
        """Run a batch: uint8 [N, H, W, 3] BGR to scores [N] and maps, both float32.

        The class says which shape the maps have, and how long the arrays stay valid. Raises
        EngineError.
        """

    @abstractmethod
    def close(self) -> None:
        """Release what the engine holds. May be called again.

        Arrays that the engine returned stay readable.
        """


def add_engine_arguments(parser: argparse.ArgumentParser, extra: tuple[str, ...] = ()) -> None:
    """Add the flags of every command that opens an engine; `engine_options` reads them.

    `extra` are further values of --engine that the command handles itself.
    """
    names = ", ".join(("auto", *extra, *ENGINES))
    parser.add_argument(
        "--engine",
        default="auto",
        help=f"{names}; auto is the first of them that can be used; default %(default)s",
    )
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", *PRECISIONS),
        help="auto is the default of the engine; default %(default)s",
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
        help="folder for compiled plans; default BUNDLE/engines",
    )


def engine_options(args: argparse.Namespace) -> EngineOptions:
    """Read the flags of `add_engine_arguments`, except --engine. Raises EngineError."""
    return EngineOptions(args.threads, args.precision, args.engine_cache)


def tolerances(manifest: Manifest, precision: str) -> tuple[float, float]:
    """Return the absolute tolerances of scores and of maps in a precision."""
    factors = PRECISIONS[precision]
    return (
        factors.score_factor * manifest.score_tolerance,
        factors.map_factor * manifest.map_tolerance,
    )


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


def choose_engine(name: str = "auto") -> str:
    """Return the name of the engine to use. `auto` is the first of ENGINES that can be used.

    Raises EngineError, with what is missing, for an engine that cannot be used.
    """
    if name != "auto":
        engine_class(name)
        reason = missing(name)
        if reason is not None:
            raise EngineError(f"engine {name}: {reason}")
        return name
    reasons = []
    for candidate in ENGINES:
        reason = missing(candidate)
        if reason is None:
            return candidate
        reasons.append(f"{candidate}: {reason}")
    raise EngineError(f"no engine can be used on this machine; {'; '.join(reasons)}")


def open_engine(bundle: Bundle, name: str = "auto", options: EngineOptions | None = None) -> Engine:
    """Open an engine for a bundle and run its self-test. Raises EngineError or BundleError."""
    options = options or EngineOptions()
    # Checked before the bundle is loaded, because compiling a plan takes minutes.
    name = choose_engine(name)
    target = engine_class(name)
    if options.precision == "auto":
        options = replace(options, precision=target.precisions[0])
    if options.precision not in target.precisions:
        raise EngineError(
            f"engine {name} does not run {options.precision}; "
            f"it runs {', '.join(target.precisions)}: see --precision"
        )
    engine = target.open(bundle, options)
    # Also Ctrl-C during the self-test must release the device.
    try:
        self_test(engine, bundle)
    except BaseException:
        engine.close()
        raise
    return engine


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
    return create(model, map_size, threads, precision)


def self_test(engine: Engine, bundle: Bundle) -> float:
    """Run the golden images, and return the largest score error.

    Raises EngineError if a score or a map leaves the manifest's tolerances, or if a verdict flips.
    Golden scores are farther from the threshold than the tolerance, so that no rounding explains a
    flip.
    """
    golden = bundle.golden()
    largest = 0.0
    for index in range(len(golden.images)):
        # One at a time, as frames of a camera are judged; plans may be built for a batch of 1.
        scores, maps = engine(golden.images[index : index + 1])
        score = float(scores[0])
        expected = float(golden.scores[index])
        map_error = float(np.max(np.abs(maps[0] - golden.maps[index]), initial=0.0))
        reason = _drift(bundle, engine.precision, score, expected, map_error)
        if reason is not None:
            raise EngineError(
                f"{engine.description} fails the self-test of {bundle.path}: "
                f"golden image {index} {reason}; "
                f"update the engine, choose another --engine, or build the bundle again"
            )
        largest = max(largest, abs(score - expected))
    return largest


def _drift(
    bundle: Bundle, precision: str, score: float, expected: float, map_error: float
) -> str | None:
    """Say how the result of a golden image is wrong; None if it is within tolerance."""
    threshold = bundle.calibration.threshold
    score_tolerance, map_tolerance = tolerances(bundle.manifest, precision)
    factor = float(tolerance_factor(expected, threshold, score_tolerance))
    score_tolerance *= factor
    map_tolerance *= factor
    error = abs(score - expected)
    flips = flipped(expected, score, threshold)
    # The comparisons are written so that an error that is NaN is out of tolerance.
    if flips or not error <= score_tolerance:
        note = ", so its verdict flips" if flips else ""
        return (
            f"scores {score:.6g} instead of {expected:.6g} (threshold {threshold:.6g}{note}): "
            f"off by {error:.3g}, the tolerance is {score_tolerance:.3g}"
        )
    if not map_error <= map_tolerance:
        return f"has a map that is off by {map_error:.3g}, the tolerance is {map_tolerance:.3g}"
    return None
