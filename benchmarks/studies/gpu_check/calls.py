"""Every engine of this machine and every precision of a bundle, as calls from host to host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from flawline.benchmarks.measure.sessions import InferenceCall
from flawline.benchmarks.studies.gpu_check.device_calls import (
    InFlight,
    OnDevice,
    check_with_torch,
)
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log
from flawline.runtime.engines import (
    ENGINES,
    EngineError,
    EngineOptions,
    engine_class,
    self_test,
    unusable_here,
)
from flawline.runtime.image import Image
from flawline.runtime.precisions import PRECISIONS

# The row that all others are compared with.
PUBLISHED = "torch eager fp32, as published"
# Of the row that measures several batches in flight: one is uploaded while the other is computed.
STREAMS = 2


class Absent(NamedTuple):
    """Something that was not measured, and why."""

    name: str
    reason: str


@dataclass
class EngineCalls:
    """The calls of engines by description, and why others are missing.

    `on_gpu` is True if one of them runs on a GPU.
    """

    calls: dict[str, InferenceCall] = field(default_factory=dict)
    absent: list[Absent] = field(default_factory=list)
    on_gpu: bool = False


def open_engines(
    bundle: Bundle, names: Sequence[str], stack: ExitStack, cache: Path | None = None
) -> EngineCalls:
    """Open engines of ENGINES in each of their precisions that the bundle has a graph for.

    An engine that cannot be used, or fails the self-test of the bundle, is absent. `stack` closes
    the others. `cache` is the folder for compiled plans; None uses that of the bundle.
    """
    opened = EngineCalls()
    for name in names:
        reason = unusable_here(name)
        if reason is not None:
            opened.absent.append(Absent(name, reason))
            continue
        for precision in engine_class(name).precisions:
            file = PRECISIONS[precision].file
            if file is not None and precision not in bundle.precisions:
                reason = f"the bundle has no {precision} graph"
                opened.absent.append(Absent(f"{name} {precision}", reason))
                continue
            options = EngineOptions(precision=precision, cache=cache)
            try:
                opened.calls.update(_open_forms(name, bundle, options, stack))
            except (EngineError, ImportError) as error:
                # ImportError: the library is installed, but cannot be loaded.
                reason = " ".join(str(error).split())
                opened.absent.append(Absent(f"{name} {precision}", reason))
                continue
            opened.on_gpu = opened.on_gpu or engine_class(name).compiles
    return opened


def _open_forms(
    name: str, bundle: Bundle, options: EngineOptions, stack: ExitStack
) -> Iterator[tuple[str, InferenceCall]]:
    """Yield description and call of every way in which an engine runs a precision."""
    if not engine_class(name).compiles:
        engine = _open(name, bundle, options, stack)
        yield engine.description, engine
        return
    # It runs on a GPU, without and with a CUDA graph.
    engine = _open(name, bundle, options, stack, without_graph=True)
    yield engine.description, engine
    engine = _open(name, bundle, options, stack)
    label = engine.description
    if engine.graph_enabled:
        label = f"{label}, CUDA graph"
        yield label, engine
        if bundle.has_map:
            yield f"{label}, score only", partial(_score_only, engine)
    if engine.has_device_memory:
        note = check_with_torch(engine, bundle.golden().images[:1])
        if note is not None:
            log(f"note: {engine.description}: {note}")
        yield f"{label}, image and map on the GPU", OnDevice(engine)
    if engine.offers_streams:
        engine = _open(name, bundle, replace(options, streams=STREAMS), stack)
        yield f"{engine.description}, throughput", InFlight(engine)


def _open(
    name: str,
    bundle: Bundle,
    options: EngineOptions,
    stack: ExitStack,
    without_graph: bool = False,
) -> Any:
    engine: Any = engine_class(name).open(bundle, options)
    stack.callback(engine.close)
    if without_graph:
        # Before the first call, which decides whether work is recorded.
        engine.uses_graph = False
    self_test(engine, bundle)
    return engine


def gpu_engines() -> list[str]:
    """Return the names of the engines that compile for a GPU."""
    return [name for name in ENGINES if engine_class(name).compiles]


def _score_only(engine: Any, images: Image) -> Sequence[NDArray[Any]]:
    """Run an engine without downloading the anomaly map."""
    engine.wants_map = False
    try:
        result: Sequence[NDArray[Any]] = engine(images)
    finally:
        engine.wants_map = True
    return result
