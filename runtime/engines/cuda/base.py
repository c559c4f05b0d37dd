"""The interface of a CUDA provider, its error and the check of a driver call's status.

A provider is the Python package through which the CUDA driver is called. All providers work in the
primary context of the device, which TensorRT, torch and CuPy share. The context is retained until
the process ends, because pinned arrays may outlive their engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from flawline.runtime.engines import EngineError

Bytes = npt.NDArray[np.uint8]
# Calls a driver function by its name without the version suffix: (name, arguments ...) to
# (status, results ...).
DriverCall = Callable[..., tuple[Any, ...]]

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
MAPPED = 2  # CU_MEMHOSTALLOC_DEVICEMAP
INTEGRATED = 18  # CU_DEVICE_ATTRIBUTE_INTEGRATED
OUT_OF_MEMORY = 2
NO_DEVICE = 100
UNKNOWN = 999

_RESTART = "driver and library versions differ: restart the machine after the driver's update"
_REMEDIES = {
    OUT_OF_MEMORY: "close other programs on this GPU, or build with a smaller --max-batch",
    35: "update the NVIDIA driver",
    NO_DEVICE: "check with nvidia-smi that the driver reports the GPU",
    803: _RESTART,
    804: _RESTART,
}


class CudaError(EngineError):
    """A driver call failed; `status` is CUDA's code.

    After the failure of an asynchronous call, every later call fails with the same status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class DeviceMemory:
    """Device memory that is freed with the last reference to it, also after `Cuda.close()`.

    `device` is the number of its GPU, and `owner` what frees it, if this object itself does not.
    """

    address: int
    device: int
    owner: object = None


class Cuda(Protocol):
    """One GPU with one stream, opened by `open_cuda`.

    Addresses and `stream` are plain integers, as TensorRT takes them. Work on the stream is
    complete only after `synchronize()`. The device memory of `allocate()` stays allocated until
    `close()`. `number` is that of the GPU among those that CUDA_VISIBLE_DEVICES lists.
    `shares_host_memory` is true for a GPU without memory of its own, as on a Jetson, if the
    provider has `mapped()`.
    """

    provider: str
    device: str
    number: int
    capability: tuple[int, int]
    shares_host_memory: bool
    stream: int
    has_graphs: bool

    def make_current(self) -> None:
        """Use the context in the calling thread. Costs nothing in the thread that used it last."""

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes of device memory and return the address; `close()` frees them."""

    def shared_memory(self, size: int) -> DeviceMemory:
        """Allocate `size` bytes of device memory, freed with the last reference to them."""

    def device_of(self, address: int) -> int | None:
        """Return the number of the GPU that an address belongs to; None if it is not CUDA's."""

    def wait_for(self, stream: int) -> None:
        """Wait until all work on another stream of this process is complete."""

    def pinned(self, size: int) -> Bytes:
        """Allocate `size` bytes of page-locked host memory, freed with the last array on it."""

    def mapped(self, size: int) -> tuple[Bytes, int]:
        """Allocate as `pinned` does; return the array and the address where the GPU uses it."""

    def copy_in(self, address: int, source: npt.NDArray[Any]) -> None:
        """Enqueue a copy of a pinned array to device memory."""

    def copy_out(self, target: npt.NDArray[Any], address: int) -> None:
        """Enqueue a copy of device memory to a pinned array."""

    def synchronize(self) -> None:
        """Wait until all work on the stream is complete."""

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """Record the work that `enqueue` puts on the stream as a graph, without running it."""

    def launch(self, graph: Any) -> None:
        """Enqueue the work of a graph."""

    def drop(self, graph: Any) -> None:
        """Free a graph."""

    def close(self) -> None:
        """Free the device memory and the stream."""


def check(call: DriverCall, name: str, *arguments: Any) -> tuple[Any, ...]:
    """Call a driver function and return its results. Raises CudaError for a status other than 0."""
    status, *results = call(name, *arguments)
    code = int(status)
    if code != 0:
        error_name = _describe(call, "cuGetErrorName", status)
        meaning = _describe(call, "cuGetErrorString", status)
        raise_cuda_error(f"{name}: {error_name} ({meaning})", code)
    return tuple(results)


def raise_cuda_error(message: str, status: int) -> NoReturn:
    """Raise CudaError with the remedy for this status."""
    raise CudaError(f"CUDA {message}; {remedy(status)}", status)


def remedy(status: int) -> str:
    """Say what a user can do about a status."""
    return _REMEDIES.get(status, "check the GPU and its driver, then start again")


def _describe(call: DriverCall, function: str, status: Any) -> str:
    _, text = call(function, status)
    return text.decode() if text else "unknown"
