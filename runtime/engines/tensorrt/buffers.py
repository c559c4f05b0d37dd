"""The memory that a plan reads and writes."""

from __future__ import annotations

import numpy as np

from flawline.runtime.engines.cuda.base import Bytes, Cuda, DeviceMemory
from flawline.runtime.engines.cuda.device_array import FLOAT32, DeviceArray
from flawline.runtime.engines.tensorrt.loaded_plan import Layout
from flawline.runtime.image import Image, Map


class Buffers:
    """Device and pinned host memory for the largest batch, allocated once.

    A GPU that shares the memory of the host uses the pinned memory itself, and nothing is copied.

    `device` has the addresses by tensor. The arrays are views of the host memory for the current
    batch: `image` uint8 [N, H, W, 3], `score` float32 [N], `map` float32 [N, H, W], and `no_map` of
    shape [N, 0, 0], which `map` is too if the graph has none. The device memory of the map may
    outlive the engine, because callers read it.
    """

    def __init__(self, cuda: Cuda, layout: Layout) -> None:
        self.device: dict[str, int] = {}
        self.image: Image
        self.score: Map
        self.map: Map
        self.no_map: Map
        self._map_memory: DeviceMemory | None = None
        self._cuda = cuda
        self._layout = layout
        self._sizes = layout.bytes_per_image()
        self._host: dict[str, Bytes] = {}
        for name, size in self._sizes.items():
            self._allocate(name, layout.largest_batch * size)
        self.set_batch(layout.largest_batch)

    def _allocate(self, name: str, size: int) -> None:
        cuda = self._cuda
        if cuda.shares_host_memory:
            # One memory for both, so that nothing is copied.
            self._host[name], self.device[name] = cuda.mapped(size)
            if name == "map":
                owner = self._host[name]
                self._map_memory = DeviceMemory(self.device[name], cuda.number, owner)
            return
        self._host[name] = cuda.pinned(size)
        if name == "map":
            self._map_memory = cuda.shared_memory(size)
            self.device[name] = self._map_memory.address
        else:
            self.device[name] = cuda.allocate(size)

    def set_batch(self, size: int) -> None:
        """Make the views for a batch of `size` images."""
        self.image = self._host_bytes("image", size).reshape(size, *self._layout.image)
        self.score = self._host_bytes("score", size).view(np.float32)
        self.no_map = np.empty((size, 0, 0), np.float32)
        self.map = self.no_map
        if self._layout.anomaly_map is not None:
            values = self._host_bytes("map", size).view(np.float32)
            self.map = values.reshape(size, *self._layout.anomaly_map)

    def copy_image_in(self) -> None:
        """Enqueue the copy of the image to the device, unless both share memory."""
        if not self._cuda.shares_host_memory:
            self._cuda.copy_in(self.device["image"], self.image)

    def copy_score_out(self) -> None:
        """Enqueue the copy of the score to the host, unless both share memory."""
        if not self._cuda.shares_host_memory:
            self._cuda.copy_out(self.score, self.device["score"])

    def copy_map_out(self) -> None:
        """Enqueue the copy of the anomaly map to the host, if the graph has one."""
        if "map" in self.device and not self._cuda.shares_host_memory:
            self._cuda.copy_out(self.map, self.device["map"])

    def device_map(self) -> DeviceArray | None:
        """Return the maps of the current batch where they are; None if the graph has none."""
        if self._map_memory is None:
            return None
        return DeviceArray(self._map_memory, self.map.shape, FLOAT32)

    def release(self) -> None:
        """Let the map's device memory be freed, unless a caller still reads it."""
        self._map_memory = None

    def _host_bytes(self, name: str, size: int) -> Image:
        return self._host[name][: size * self._sizes[name]]
