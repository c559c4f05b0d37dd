"""A PyCUDA with the calls that ours makes, on the driver of fakecuda.c. PyCUDA itself has to be compiled."""

from __future__ import annotations

import ctypes
import types
import weakref
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np


def pretend_pycuda(library: str) -> dict[str, types.ModuleType]:
    """The modules by name."""
    driver = ctypes.CDLL(library)
    started: list[None] = []
    stack: list[
        Any
    ] = []  # of contexts; PyCUDA aborts where it is not empty when the interpreter ends

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    def call(name: str, *arguments: Any) -> None:
        if status := getattr(driver, name)(*arguments):
            raise (MemoryError if status == 2 else Error)(
                f"{name.removesuffix('_v2')} failed: {'out of memory' if status == 2 else status}"
            )

    class Device:
        def __init__(self, number: int) -> None:
            if not started:
                raise Error("cuDeviceGet failed: initialization error")
            call("cuDeviceGet", ctypes.byref(ctypes.c_int()), number)

        def name(self) -> str:
            text = ctypes.create_string_buffer(64)
            call("cuDeviceGetName", text, 64, 0)
            return text.value.decode()

        def compute_capability(self) -> tuple[int, int]:
            major, minor = ctypes.c_int(), ctypes.c_int()
            call("cuDeviceGetAttribute", ctypes.byref(major), 75, 0)
            call("cuDeviceGetAttribute", ctypes.byref(minor), 76, 0)
            return major.value, minor.value

        def retain_primary_context(self) -> Any:
            context = ctypes.c_void_p()
            call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)

            def push() -> None:
                call("cuCtxSetCurrent", context)
                stack.append(context)

            return types.SimpleNamespace(push=push, pop=stack.pop)

    class DeviceAllocation:
        def __init__(self, size: int) -> None:
            self._address = ctypes.c_uint64()
            call("cuMemAlloc_v2", ctypes.byref(self._address), ctypes.c_size_t(size))
            weakref.finalize(self, driver.cuMemFree_v2, self._address).atexit = False

        def __int__(self) -> int:
            return int(self._address.value)

    class Stream:
        def __init__(self, flags: int) -> None:
            self._stream = ctypes.c_void_p()
            call("cuStreamCreate", ctypes.byref(self._stream), flags)
            weakref.finalize(self, driver.cuStreamDestroy_v2, self._stream).atexit = False

        @property
        def handle(self) -> int:
            return int(self._stream.value or 0)

        def synchronize(self) -> None:
            call("cuStreamSynchronize", self._stream)

    class Event:
        def __init__(self) -> None:
            self._event = ctypes.c_void_p()
            call("cuEventCreate", ctypes.byref(self._event), 0)
            weakref.finalize(self, driver.cuEventDestroy_v2, self._event).atexit = False

        def record(self, stream: Stream) -> None:
            call("cuEventRecord", self._event, stream._stream)

        def time_since(self, start: Event) -> float:
            milliseconds = ctypes.c_float()
            call("cuEventElapsedTime", ctypes.byref(milliseconds), start._event, self._event)
            return milliseconds.value

    def pagelocked_empty(shape: int, dtype: Any) -> Any:
        address = ctypes.c_void_p()
        call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(shape), 0)
        owner = (ctypes.c_uint8 * shape).from_address(address.value or 0)
        weakref.finalize(owner, driver.cuMemFreeHost, address).atexit = False
        return np.frombuffer(memoryview(owner), dtype)

    def htod(address: int, source: Any, stream: Stream) -> None:
        pointers = ctypes.c_uint64(address), ctypes.c_void_p(source.ctypes.data)
        call("cuMemcpyHtoDAsync_v2", *pointers, ctypes.c_size_t(source.nbytes), stream._stream)

    def dtoh(target: Any, address: int, stream: Stream) -> None:
        pointers = ctypes.c_void_p(target.ctypes.data), ctypes.c_uint64(address)
        call("cuMemcpyDtoHAsync_v2", *pointers, ctypes.c_size_t(target.nbytes), stream._stream)

    module, package = types.ModuleType("pycuda.driver"), types.ModuleType("pycuda")
    package.__spec__ = ModuleSpec("pycuda", None, origin="pretend")
    package.__dict__.update(VERSION_TEXT="2026.1", driver=module)
    module.__dict__.update(
        init=lambda: (call("cuInit", 0), started.append(None)),
        stack=stack,
        Device=Device,
        Stream=Stream,
        Event=Event,
        Error=Error,
        MemoryError=MemoryError,
        mem_alloc=DeviceAllocation,
        pagelocked_empty=pagelocked_empty,
        memcpy_htod_async=htod,
        memcpy_dtoh_async=dtoh,
    )
    return {"pycuda": package, "pycuda.driver": module}
