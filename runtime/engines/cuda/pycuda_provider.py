"""PyCUDA as a provider, for machines that have it."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.runtime.engines.cuda import libcuda
from flawline.runtime.engines.cuda.base import (
    NON_BLOCKING,
    OUT_OF_MEMORY,
    UNKNOWN,
    Bytes,
    Cuda,
    DeviceMemory,
    check,
    raise_cuda_error,
)
from flawline.runtime.engines.cuda.driver import device_of


def open_pycuda() -> Cuda | None:
    """Open the GPU through PyCUDA.

    Returns None if it is not installed or was compiled for another CUDA than the installed one.
    """
    try:
        return PyCuda()
    except ImportError:
        return None


class PyCuda:
    """A provider on PyCUDA, which keeps a stack of contexts for every thread.

    The main thread's stack must be empty when the interpreter ends, so that `close` is registered
    to run at exit.
    """

    has_graphs = False  # PyCUDA cannot capture a stream
    shares_host_memory = False  # buffers are copied, as on every other GPU

    def __init__(self) -> None:
        driver = import_module("pycuda.driver")
        self._driver = driver
        self.provider = f"pycuda {import_module('pycuda').VERSION_TEXT}"
        self._threads: set[int] = set()  # in which the context was pushed
        self._memory: list[Any] = []
        self._call(driver.init)
        self.number = 0
        device = self._call(driver.Device, self.number)
        self.device = str(self._call(device.name))
        major, minor = self._call(device.compute_capability)
        self.capability = (int(major), int(minor))
        self._context = self._call(device.retain_primary_context)
        self.make_current()
        atexit.register(self.close)
        self._stream = self._call(driver.Stream, NON_BLOCKING)
        self.stream = int(self._stream.handle)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.MemoryError as error:
            raise_cuda_error(str(error), OUT_OF_MEMORY)
        except self._driver.Error as error:
            raise_cuda_error(str(error), UNKNOWN)

    def make_current(self) -> None:
        thread = threading.get_ident()
        if thread not in self._threads:
            self._call(self._context.push)
            self._threads.add(thread)

    def allocate(self, size: int) -> int:
        memory = self._call(self._driver.mem_alloc, size)
        self._memory.append(memory)
        return int(memory)

    def shared_memory(self, size: int) -> DeviceMemory:
        memory = self._call(self._driver.mem_alloc, size)
        return DeviceMemory(int(memory), self.number, memory)

    # PyCUDA has neither of these for what it did not make itself.

    def device_of(self, address: int) -> int | None:
        return device_of(libcuda.load_libcuda(), address)

    def wait_for(self, stream: int) -> None:
        check(libcuda.load_libcuda(), "cuStreamSynchronize", stream)

    def pinned(self, size: int) -> Bytes:
        array: Bytes = self._call(self._driver.pagelocked_empty, size, np.uint8)
        return array

    def mapped(self, size: int) -> tuple[Bytes, int]:
        raise NotImplementedError("shares_host_memory is False")

    def copy_in(self, address: int, source: npt.NDArray[Any]) -> None:
        self._call(self._driver.memcpy_htod_async, address, source, self._stream)

    def copy_out(self, target: npt.NDArray[Any], address: int) -> None:
        self._call(self._driver.memcpy_dtoh_async, target, address, self._stream)

    def synchronize(self) -> None:
        self._call(self._stream.synchronize)

    def capture(self, enqueue: Callable[[], None]) -> Any:
        raise NotImplementedError("has_graphs is False")

    def launch(self, graph: Any) -> None:
        raise NotImplementedError("has_graphs is False")

    def drop(self, graph: Any) -> None:
        raise NotImplementedError("has_graphs is False")

    def close(self) -> None:
        # PyCUDA frees device memory and the stream with their last references.
        self._memory = []
        self._stream = None
        thread = threading.get_ident()
        if thread in self._threads:
            self._threads.discard(thread)
            self._call(self._context.pop)
        if not self._threads:
            atexit.unregister(self.close)
