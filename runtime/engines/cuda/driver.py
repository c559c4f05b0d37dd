"""The driver's C functions as a provider, called through cuda-bindings or through ctypes."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.runtime.engines.cuda import libcuda
from flawline.runtime.engines.cuda.base import (
    INTEGRATED,
    MAPPED,
    NON_BLOCKING,
    Bytes,
    Cuda,
    DeviceMemory,
    DriverCall,
    check,
)

_CAPTURE_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_CAPABILITY_MAJOR = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
_CAPABILITY_MINOR = 76
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL


def open_cuda_bindings() -> Cuda | None:
    """Open the GPU through NVIDIA's cuda-bindings.

    Returns None if the package is not installed, and if it was made for a newer driver than
    the installed one, which would lack some of its functions.
    """
    try:
        release = version("cuda-bindings")
        bindings = import_module("cuda.bindings.driver")
    except (PackageNotFoundError, ImportError):
        return None
    (supported,) = check(libcuda.load_libcuda(), "cuDriverGetVersion")
    if int(release.split(".")[0]) > supported // 1000:
        return None
    return Driver(_bindings_call(bindings), f"cuda-bindings {release}")


def open_libcuda() -> Cuda:
    """Open the GPU through ctypes, which works wherever there is a driver."""
    return Driver(libcuda.load_libcuda(), libcuda.PROVIDER)


def device_name(call: DriverCall, device: int) -> str:
    """Return the name of a GPU, such as "Orin". Raises CudaError."""
    (name,) = check(call, "cuDeviceGetName", 256, device)
    return str(name.split(b"\0")[0].decode(errors="replace"))


def device_of(call: DriverCall, address: int) -> int | None:
    """Return the number of the GPU that an address belongs to; None if it is not CUDA's."""
    status, *results = call("cuPointerGetAttribute", _DEVICE_ORDINAL, address)
    if int(status) != 0:
        return None
    return int(results[0])


def _bindings_call(bindings: Any) -> DriverCall:
    """Adapt cuda-bindings, which has types of its own, to plain integers."""
    # Functions with a parameter that must be a member of an enumeration: its position and type.
    enumerations = {
        "cuDeviceGetAttribute": (0, bindings.CUdevice_attribute),
        "cuPointerGetAttribute": (0, bindings.CUpointer_attribute),
        "cuStreamBeginCapture": (1, bindings.CUstreamCaptureMode),
    }

    def call(name: str, *arguments: Any) -> tuple[Any, ...]:
        parameters = list(arguments)
        if name in enumerations:
            position, enumeration = enumerations[name]
            parameters[position] = enumeration(parameters[position])
        status, *results = getattr(bindings, name)(*parameters)
        values = [_plain(result) for result in results]
        return (status, *values)

    return call


def _plain(result: Any) -> Any:
    """Convert an address or handle of cuda-bindings to an integer.

    A failed call has None in place of its results.
    """
    if result is None or isinstance(result, bytes):
        return result
    return int(result)


class Driver:
    """A provider that calls the driver's functions through any `DriverCall`."""

    has_graphs = True

    def __init__(self, call: DriverCall, provider: str) -> None:
        self.provider = provider
        self._raw_call = call
        self._memory: list[int] = []
        self.stream = 0
        self.number = 0
        self._call("cuInit", 0)
        (device,) = self._call("cuDeviceGet", self.number)
        self.device = device_name(call, device)
        (major,) = self._call("cuDeviceGetAttribute", _CAPABILITY_MAJOR, device)
        (minor,) = self._call("cuDeviceGetAttribute", _CAPABILITY_MINOR, device)
        self.capability = (major, minor)
        (integrated,) = self._call("cuDeviceGetAttribute", INTEGRATED, device)
        self.shares_host_memory = bool(integrated)
        (self._context,) = self._call("cuDevicePrimaryCtxRetain", device)
        self._thread = 0
        self.make_current()
        (self.stream,) = self._call("cuStreamCreate", NON_BLOCKING)

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        return check(self._raw_call, name, *arguments)

    def make_current(self) -> None:
        thread = threading.get_ident()
        if self._thread != thread:
            self._call("cuCtxSetCurrent", self._context)
            self._thread = thread

    def allocate(self, size: int) -> int:
        (address,) = self._call("cuMemAlloc", size)
        self._memory.append(address)
        return int(address)

    def shared_memory(self, size: int) -> DeviceMemory:
        (address,) = self._call("cuMemAlloc", size)
        memory = DeviceMemory(int(address), self.number)
        finalizer = weakref.finalize(
            memory, _free_device, self._raw_call, self._context, memory.address
        )
        # As with pinned memory.
        finalizer.atexit = False
        return memory

    def device_of(self, address: int) -> int | None:
        return device_of(self._raw_call, address)

    def wait_for(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def pinned(self, size: int) -> Bytes:
        return self._host_memory(size, 0)

    def mapped(self, size: int) -> tuple[Bytes, int]:
        memory = self._host_memory(size, MAPPED)
        (address,) = self._call("cuMemHostGetDevicePointer", memory.ctypes.data, 0)
        return memory, int(address)

    def _host_memory(self, size: int, flags: int) -> Bytes:
        (address,) = self._call("cuMemHostAlloc", size, flags)
        owner = (ctypes.c_uint8 * size).from_address(address)
        finalizer = weakref.finalize(owner, _free_pinned, self._raw_call, self._context, address)
        # At exit the driver may be gone already, and it frees the memory itself.
        finalizer.atexit = False
        return np.frombuffer(memoryview(owner), np.uint8)

    def copy_in(self, address: int, source: npt.NDArray[Any]) -> None:
        self._call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, self.stream)

    def copy_out(self, target: npt.NDArray[Any], address: int) -> None:
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, self.stream)

    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", self.stream)

    def capture(self, enqueue: Callable[[], None]) -> Any:
        self._call("cuStreamBeginCapture", self.stream, _CAPTURE_THREAD_LOCAL)
        try:
            enqueue()
        except BaseException:
            # The stream cannot be used again before its capture has ended.
            _, graph = self._raw_call("cuStreamEndCapture", self.stream)
            if graph:
                self._raw_call("cuGraphDestroy", graph)
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
        # Statuses are ignored: after an asynchronous failure every call returns that failure again,
        # and it was reported when it was first seen.
        self._raw_call("cuCtxSetCurrent", self._context)
        for address in self._memory:
            self._raw_call("cuMemFree", address)
        self._memory = []
        if self.stream:
            self._raw_call("cuStreamDestroy", self.stream)
            self.stream = 0


def _free_device(call: DriverCall, context: int, address: int) -> None:
    call("cuCtxSetCurrent", context)
    call("cuMemFree", address)


def _free_pinned(call: DriverCall, context: int, address: int) -> None:
    call("cuCtxSetCurrent", context)
    call("cuMemFreeHost", address)
