"""The CUDA driver calls that an engine needs, from whichever Python package this machine has for them.

Three providers of the same calls: cuda-bindings (NVIDIA's), PyCUDA, and libcuda itself through ctypes, which wants no
package, so that a Jetson with its own TensorRT runs as it is. All work in the device's primary context, which
TensorRT, torch and CuPy share. It is retained for the life of the process: pinned arrays may outlive their engine.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from flawline.runtime.engines import EngineError
from flawline.runtime.engines.cuda import libcuda

Bytes = npt.NDArray[np.uint8]
# A driver call by its name without version suffix: its arguments to (status, results ...).
Call = Callable[..., tuple[Any, ...]]

_NON_BLOCKING, _CAPTURE_THREAD_LOCAL = 1, 1
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_REMEDY = {
    2: "close what else uses this GPU's memory, or build with a smaller --max-batch",
    35: "update the NVIDIA driver",
    100: "check that this machine sees its GPU (nvidia-smi)",
    803: "driver and library versions differ: restart the machine after the driver's update",
    804: "driver and library versions differ: restart the machine after the driver's update",
}


class CudaError(EngineError):
    """A driver call failed; `status` is CUDA's code. After an asynchronous failure every later call fails too."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Cuda(Protocol):
    """One GPU with one stream. Addresses and `stream` are plain integers, as TensorRT takes them.

    What is put on the stream has happened only after `synchronize()`. Close it, or its device memory stays taken.
    """

    provider: str
    device: str
    capability: tuple[int, int]
    stream: int
    has_graphs: bool

    def make_current(self) -> None:
        """Use the context from the calling thread; costs nothing where it was used last."""

    def allocate(self, size: int) -> int:
        """Bytes of device memory, freed by `close()`."""

    def pinned(self, size: int) -> Bytes:
        """Page-locked host memory, freed with the last array that views it."""

    def copy_in(self, address: int, source: npt.NDArray[Any]) -> None: ...

    def copy_out(self, target: npt.NDArray[Any], address: int) -> None: ...

    def synchronize(self) -> None: ...

    def event(self) -> Any: ...

    def record(self, event: Any) -> None: ...

    def elapsed_ms(self, start: Any, end: Any) -> float: ...

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """A graph of what `enqueue` puts on the stream; nothing of it runs before `launch`."""

    def launch(self, graph: Any) -> None: ...

    def drop(self, graph: Any) -> None: ...

    def close(self) -> None: ...


def driver_missing() -> str | None:
    """Why there is no GPU to use and what to do; None where one is. TensorRT 8 crashes unless this is asked first."""
    try:
        call = libcuda.libcuda_call()
    except OSError:
        return f"there is no NVIDIA driver here ({libcuda.LIBRARY}); install it, or choose --engine onnxruntime"
    try:
        _checked(call, "cuInit", 0)
        (count,) = _checked(call, "cuDeviceGetCount")
    except CudaError as error:
        return str(error)
    return None if count else f"the NVIDIA driver sees no GPU; {_REMEDY[100]}"


def open_cuda() -> Cuda:
    """The first GPU (CUDA_VISIBLE_DEVICES chooses) through the first provider that is here. Raises EngineError."""
    if why := driver_missing():
        raise EngineError(why)
    for opens in PROVIDERS:
        if (cuda := opens()) is not None:
            return cuda
    raise AssertionError("libcuda itself is always there")


def _cuda_bindings() -> Cuda | None:
    """None where it is absent, or made for a newer driver than this one: some of its calls would be missing."""
    try:
        release, driver = version("cuda-bindings"), import_module("cuda.bindings.driver")
    except (PackageNotFoundError, ImportError):
        return None
    (supported,) = _checked(libcuda.libcuda_call(), "cuDriverGetVersion")
    if int(release.split(".")[0]) > supported // 1000:
        return None
    enums = {"cuDeviceGetAttribute": (0, driver.CUdevice_attribute)}
    enums["cuStreamBeginCapture"] = (1, driver.CUstreamCaptureMode)

    def call(name: str, *arguments: Any) -> tuple[Any, ...]:
        if name in enums:
            position, enum = enums[name]
            arguments = (
                *arguments[:position],
                enum(arguments[position]),
                *arguments[position + 1 :],
            )
        status, *results = getattr(driver, name)(*arguments)
        # It wraps addresses and handles in types of its own, and gives None for results of a call that failed.
        return (
            status,
            *(r if r is None or isinstance(r, (bytes, float)) else int(r) for r in results),
        )

    return _Driver(call, f"cuda-bindings {release}")


def _pycuda() -> Cuda | None:
    from flawline.runtime.engines.cuda.pycuda_provider import PyCuda

    try:
        return PyCuda()
    except ImportError:  # absent, or compiled for a CUDA that is not here
        return None


def _libcuda() -> Cuda:
    return _Driver(libcuda.libcuda_call(), libcuda.LIBRARY)


PROVIDERS: tuple[Callable[[], Cuda | None], ...] = (_cuda_bindings, _pycuda, _libcuda)


def _checked(call: Call, name: str, *arguments: Any) -> tuple[Any, ...]:
    """The one place where a status becomes an exception."""
    status, *results = call(name, *arguments)
    if int(status):
        named, told = (
            call(n, status)[1] or b"unknown" for n in ("cuGetErrorName", "cuGetErrorString")
        )
        fail(f"{name}: {named.decode()} ({told.decode()})", int(status))
    return tuple(results)


def fail(what: str, status: int) -> NoReturn:
    """Raise CudaError with the remedy for this status."""
    raise CudaError(
        f"CUDA {what}; {_REMEDY.get(status, 'check the GPU and its driver, then start again')}",
        status,
    )


class _Driver:
    """Over any `Call`: cuda-bindings and ctypes differ in nothing else."""

    has_graphs = True

    def __init__(self, call: Call, provider: str) -> None:
        self.provider = provider
        self._raw = call
        self._memory: list[int] = []
        self._events: list[int] = []
        self.stream = 0
        self._call("cuInit", 0)
        (device,) = self._call("cuDeviceGet", 0)
        self.device = (
            self._call("cuDeviceGetName", 256, device)[0].split(b"\0")[0].decode(errors="replace")
        )
        major, minor = (self._call("cuDeviceGetAttribute", a, device)[0] for a in (_MAJOR, _MINOR))
        self.capability = (major, minor)
        (self._context,) = self._call("cuDevicePrimaryCtxRetain", device)
        self._thread = 0
        self.make_current()
        (self.stream,) = self._call("cuStreamCreate", _NON_BLOCKING)

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        return _checked(self._raw, name, *arguments)

    def make_current(self) -> None:
        if self._thread != threading.get_ident():
            self._call("cuCtxSetCurrent", self._context)
            self._thread = threading.get_ident()

    def allocate(self, size: int) -> int:
        (address,) = self._call("cuMemAlloc", size)
        self._memory.append(address)
        return int(address)

    def pinned(self, size: int) -> Bytes:
        (address,) = self._call("cuMemHostAlloc", size, 0)
        owner = (ctypes.c_uint8 * size).from_address(address)
        finalizer = weakref.finalize(owner, _free_pinned, self._raw, self._context, address)
        finalizer.atexit = False  # the driver may be gone by then, and frees it itself
        return np.frombuffer(memoryview(owner), np.uint8)

    def copy_in(self, address: int, source: npt.NDArray[Any]) -> None:
        self._call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, self.stream)

    def copy_out(self, target: npt.NDArray[Any], address: int) -> None:
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, self.stream)

    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", self.stream)

    def event(self) -> Any:
        (event,) = self._call("cuEventCreate", 0)
        self._events.append(event)
        return event

    def record(self, event: Any) -> None:
        self._call("cuEventRecord", event, self.stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(self._call("cuEventElapsedTime", start, end)[0])

    def capture(self, enqueue: Callable[[], None]) -> Any:
        self._call("cuStreamBeginCapture", self.stream, _CAPTURE_THREAD_LOCAL)
        try:
            enqueue()
        except BaseException:
            _, graph = self._raw("cuStreamEndCapture", self.stream)  # or the stream stays unusable
            if graph:
                self._raw("cuGraphDestroy", graph)
            raise
        (graph,) = self._call("cuStreamEndCapture", self.stream)
        try:
            (executable,) = self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)
        return executable

    def launch(self, graph: Any) -> None:
        self._call("cuGraphLaunch", graph, self.stream)

    def drop(self, graph: Any) -> None:
        self._call("cuGraphExecDestroy", graph)

    def close(self) -> None:
        """Statuses are not looked at: after an asynchronous failure every call repeats it, and it was told already."""
        self._raw("cuCtxSetCurrent", self._context)
        for event in self._events:
            self._raw("cuEventDestroy", event)
        for address in self._memory:
            self._raw("cuMemFree", address)
        if self.stream:
            self._raw("cuStreamDestroy", self.stream)
        self._events, self._memory, self.stream = [], [], 0


def _free_pinned(call: Call, context: int, address: int) -> None:
    call("cuCtxSetCurrent", context)
    call("cuMemFreeHost", address)
