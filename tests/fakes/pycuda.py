"""A fake PyCUDA with the calls that the provider makes, on the driver of fakecuda.c.

PyCUDA itself would have to be compiled.
"""

from __future__ import annotations

import ctypes
import types
import weakref
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np


def fake_pycuda(library: str) -> dict[str, types.ModuleType]:
    """The modules by name."""
    driver = ctypes.CDLL(library)
    initialised: list[None] = []
    # The stack of contexts. PyCUDA aborts if it is not empty when the interpreter ends.
    stack: list[Any] = []

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    def call(name: str, *arguments: Any) -> None:
        status = getattr(driver, name)(*arguments)
        plain_name = name.removesuffix("_v2")
        if status == 2:
            raise MemoryError(f"{plain_name} failed: out of memory")
        if status:
            raise Error(f"{plain_name} failed: {status}")

    def init() -> None:
        call("cuInit", 0)
        initialised.append(None)

    class Device:
        def __init__(self, number: int) -> None:
            if not initialised:
                raise Error("cuDeviceGet failed: initialization error")
            call("cuDeviceGet", ctypes.byref(ctypes.c_int()), number)

        def name(self) -> str:
            text = ctypes.create_string_buffer(64)
            call("cuDeviceGetName", text, 64, 0)
            return text.value.decode()

        def compute_capability(self) -> tuple[int, int]:
            major = ctypes.c_int()
            minor = ctypes.c_int()
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

    module = types.ModuleType("pycuda.driver")
    module.__dict__.update(
        init=init,
        stack=stack,
        Device=Device,
        Stream=Stream,
        Error=Error,
        MemoryError=MemoryError,
        mem_alloc=DeviceAllocation,
        pagelocked_empty=pagelocked_empty,
        memcpy_htod_async=htod,
        memcpy_dtoh_async=dtoh,
    )
    package = types.ModuleType("pycuda")
    package.__spec__ = ModuleSpec("pycuda", None, origin="fake")
    package.__dict__.update(VERSION_TEXT="2026.1", driver=module)
    return {"pycuda": package, "pycuda.driver": module}
