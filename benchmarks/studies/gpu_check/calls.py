"""Every way to run one network on a GPU, as calls from host to host."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray

from flawline.benchmarks.measure.sessions import InferenceCall
from flawline.benchmarks.published import find_published
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log
from flawline.runtime.engines import (
    ENGINES,
    EngineError,
    EngineOptions,
    engine_class,
    missing,
)
from flawline.runtime.image import Image
from flawline.train.method import Method

PRECISIONS = ("fp32", "fp16")
# The row that all others are compared with.
PUBLISHED = "torch eager fp32, as published"


def open_device(name: str) -> torch.device:
    """Return the device. Raises EngineError for a GPU that torch does not find."""
    if name != "cpu" and not torch.cuda.is_available():
        raise EngineError(
            "torch finds no GPU on this machine; use a machine that has one, or try --device cpu"
        )
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Return the product name of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or "cpu"


def torch_calls(method: Method, device: torch.device) -> Iterator[tuple[str, InferenceCall]]:
    """Yield name and call of each way to run a method in torch.

    Every call uploads its images and downloads its results.
    """
    published = find_published(method.name).as_published
    if published is not None:
        yield PUBLISHED, partial(_run_on, device, published(method).eval().to(device))
    yield "torch eager fp32, fused", partial(_run_on, device, method.fused().to(device))
    half = method.fused().half().to(device)
    yield "torch eager fp16, fused", partial(_run_on, device, half)
    if device.type == "cuda":
        compiled = torch.compile(half, mode="max-autotune-no-cudagraphs", dynamic=False)
        yield "torch.compile fp16, fused", partial(_run_on, device, compiled)


@torch.inference_mode()
def _run_on(
    device: torch.device, module: Callable[[torch.Tensor], Any], images: Image
) -> Sequence[NDArray[Any]]:
    outputs = []
    for output in module(torch.from_numpy(images).to(device)):
        outputs.append(output.float().cpu().numpy())
    return outputs


def engine_calls(bundle: Bundle, stack: ExitStack) -> Iterator[tuple[str, InferenceCall]]:
    """Yield name and call of every engine that compiles for a GPU, as users run it.

    Each is opened without and with a CUDA graph; `stack` closes it.
    """
    for name in ENGINES:
        if not engine_class(name).compiles:
            continue
        reason = missing(name)
        if reason is not None:
            log(f"note: no {name} ({reason})")
            continue
        for precision in PRECISIONS:
            engine = _open(name, bundle, precision, stack)
            # Before the first call, which decides whether work is recorded.
            engine.uses_graph = False
            yield engine.description, engine
            engine = _open(name, bundle, precision, stack)
            if engine.graph_enabled:
                label = f"{engine.description}, CUDA graph"
                yield label, engine
                yield f"{label}, score only", partial(_score_only, engine)


def _open(name: str, bundle: Bundle, precision: str, stack: ExitStack) -> Any:
    engine = engine_class(name).open(bundle, EngineOptions(precision=precision))
    stack.callback(engine.close)
    return engine


def _score_only(engine: Any, images: Image) -> Sequence[NDArray[Any]]:
    """Run an engine without downloading the anomaly map."""
    engine.wants_map = False
    try:
        result: Sequence[NDArray[Any]] = engine(images)
    finally:
        engine.wants_map = True
    return result
