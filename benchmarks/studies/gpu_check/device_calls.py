"""Calls of an engine with images that are on the GPU already, and with several in flight."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline.runtime.engines import EngineError
from flawline.runtime.image import Image


class OnDevice:
    """Runs an engine on images in the memory of the GPU; the map stays there.

    Images are uploaded when they are not those of the call before, so that timed calls, which
    repeat the same, upload nothing.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._images: Image | None = None
        self._given: Any = None

    def __call__(self, images: Image) -> Sequence[NDArray[Any]]:
        if images is not self._images:
            self._given = self._engine.to_device(images)
            self._images = images
        self._engine.wants_map = False
        try:
            result: Sequence[NDArray[Any]] = self._engine(self._given)
        finally:
            self._engine.wants_map = True
        return result


class InFlight:
    """Runs an engine with all of its batches in flight; the time of a call is not its latency.

    A call submits its images and returns the oldest result. Only calls that repeat the same images
    have the results of others in flight.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._images: Image | None = None
        self._waiting = 0

    def __call__(self, images: Image) -> Sequence[NDArray[Any]]:
        if images is not self._images:
            while self._waiting > 0:
                self._take()
            self._images = images
        while self._waiting < self._engine.in_flight:
            self._engine.submit(images)
            self._waiting += 1
        return self._take()

    def _take(self) -> Sequence[NDArray[Any]]:
        self._waiting -= 1
        result: Sequence[NDArray[Any]] = self._engine.result()
        return result


def check_with_torch(engine: Any, images: Image) -> str | None:
    """Give images as tensors of torch on the GPU, and read the maps there with torch.

    Returns what was not checked and why; None if all was. Raises EngineError if a score or a map is
    not the one of the same images in host memory.
    """
    if find_spec("torch") is None:
        return "not checked with torch, which is not installed"
    import torch

    if not torch.cuda.is_available():
        return "not checked with torch, which finds no GPU"
    compare_on_device(engine, images, torch.device("cuda", 0))
    return None


def compare_on_device(engine: Any, images: Image, device: Any) -> None:
    """Compare the results of images in the memory of a torch device with those from the host.

    Raises EngineError for a difference of more than a thousandth of the largest value: the plan and
    the images are the same.
    """
    import torch
    from torch.utils.dlpack import from_dlpack

    scores, maps = [values.copy() for values in engine(images)]
    tensor = torch.from_numpy(images).to(device)
    for turn in range(3):
        # The first call warms up, the second records a graph, and the third launches it.
        own_scores, _ = engine(tensor)
        _require_equal(f"scores of a tensor on the GPU, call {turn + 1}", own_scores, scores)
        if maps.size:
            read = from_dlpack(engine.device_map()).cpu().numpy()
            _require_equal(f"maps that torch reads on the GPU, call {turn + 1}", read, maps)


def _require_equal(name: str, values: NDArray[Any], expected: NDArray[Any]) -> None:
    error = float(np.max(np.abs(values - expected), initial=0.0))
    # Written so that an error that is NaN is too large.
    if not error <= 1e-3 * float(np.max(np.abs(expected), initial=0.0)):
        raise EngineError(f"{name} are off by {error:.3g}; report this with the versions above")
