"""PyCUDA as a provider of runtime.cuda's calls, for boxes that have it."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.runtime.engines.cuda.driver import Bytes, fail

_NON_BLOCKING = 1
_OUT_OF_MEMORY, _UNKNOWN = 2, 999


class PyCuda:
    """PyCUDA keeps a stack of contexts for every thread; the main thread's must be empty when the interpreter ends."""

    has_graphs = False  # PyCUDA captures no streams

    def __init__(self) -> None:
        self._driver = driver = import_module("pycuda.driver")
        self.provider = f"pycuda {import_module('pycuda').VERSION_TEXT}"
        self._pushed: set[int] = set()
        self._memory: list[Any] = []
        self._call(driver.init)
        device = self._call(driver.Device, 0)
        self.device = str(self._call(device.name))
        major, minor = self._call(device.compute_capability)
        self.capability = (int(major), int(minor))
        self._context = self._call(device.retain_primary_context)
        self.make_current()
        atexit.register(self.close)
        self._stream = self._call(driver.Stream, _NON_BLOCKING)
        self.stream = int(self._stream.handle)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.Error as error:
            fail(
                str(error),
                _OUT_OF_MEMORY if isinstance(error, self._driver.MemoryError) else _UNKNOWN,
            )

    def make_current(self) -> None:
        if threading.get_ident() not in self._pushed:
            self._call(self._context.push)
            self._pushed.add(threading.get_ident())

    def allocate(self, size: int) -> int:
        memory = self._call(self._driver.mem_alloc, size)
        self._memory.append(memory)
        return int(memory)

    def pinned(self, size: int) -> Bytes:
        array: Bytes = self._call(self._driver.pagelocked_empty, size, np.uint8)
        return array

    def copy_in(self, address: int, source: npt.NDArray[Any]) -> None:
        self._call(self._driver.memcpy_htod_async, address, source, self._stream)

    def copy_out(self, target: npt.NDArray[Any], address: int) -> None:
        self._call(self._driver.memcpy_dtoh_async, target, address, self._stream)

    def synchronize(self) -> None:
        self._call(self._stream.synchronize)

    def event(self) -> Any:
        return self._call(self._driver.Event)

    def record(self, event: Any) -> None:
        self._call(event.record, self._stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(self._call(end.time_since, start))

    def capture(self, enqueue: Callable[[], None]) -> Any:
        raise NotImplementedError("has_graphs is False")

    def launch(self, graph: Any) -> None:
        raise NotImplementedError("has_graphs is False")

    def drop(self, graph: Any) -> None:
        raise NotImplementedError("has_graphs is False")

    def close(self) -> None:
        """Device memory and stream go as their last references do."""
        self._memory = []
        self._stream = None
        if threading.get_ident() in self._pushed:
            self._pushed.discard(threading.get_ident())
            self._call(self._context.pop)
        if not self._pushed:
            atexit.unregister(self.close)
