"""One CUDA stream on which a plan runs, with the context, the buffers and the graphs of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from flawline.runtime.console import log
from flawline.runtime.engines import EngineError
from flawline.runtime.engines.arrays import host_image, is_on_device, require_shape
from flawline.runtime.engines.cuda import Cuda, CudaError
from flawline.runtime.engines.cuda.device_array import DeviceArray, DeviceImage, device_image
from flawline.runtime.engines.tensorrt.api import Module
from flawline.runtime.engines.tensorrt.buffers import Buffers
from flawline.runtime.engines.tensorrt.loaded_plan import Session
from flawline.runtime.engines.tensorrt.plan_cache import Plan
from flawline.runtime.image import Image, Map

# CUDA graphs for so many addresses of images, those that were used last.
MOST_GRAPHS = 8


class Lane:
    """Runs one batch at a time; several lanes of a plan run at the same time.

    The second run with a batch size and an address of the image captures the work as a CUDA graph,
    and the later ones launch it, unless `uses_graph` is False. Raises EngineError; a PlanRefused if
    building the plan again may help.
    """

    def __init__(self, trt: Module, plan: Plan, description: str, cuda: Cuda) -> None:
        self.cuda = cuda
        self._description = description
        # Of its own: TensorRT before version 10 allows one context for each profile of a plan.
        self.session = Session(trt, plan, description)
        self.buffers = Buffers(cuda, self.session.layout)
        for name, address in self.buffers.device.items():
            self.session.set_address(name, address)
        self.uses_graph = cuda.has_graphs and not self.session.captures_graphs
        # By the address of the image, the one that was used last at the end. None is an address
        # with which the plan ran once, for warming up.
        self._graphs: dict[int, Any] = {}
        self._address = self.buffers.device["image"]
        self._batch = -1  # no batch size is set
        # Of the run that was submitted: whether its map is wanted, and the image that it reads.
        self._wants_map = True
        self._given: DeviceImage | None = None

    def submit(self, image: Any, wants_map: bool) -> None:
        """Put the work of a batch on the stream: an image in host memory, or on this GPU."""
        self.cuda.make_current()
        self._given = None
        if is_on_device(image):
            given: DeviceImage = device_image(image, self.cuda)
            self._set_shape(given.shape)
            self._given = given
            self._run(given.address)
        else:
            array: Image = host_image(image)
            self._set_shape(array.shape)
            np.copyto(self.buffers.image, array)
            self._run(self.buffers.device["image"])
        self._wants_map = wants_map
        if wants_map:
            self.buffers.copy_map_out()

    def result(self) -> tuple[Map, Map]:
        """Wait for the work, and return scores and maps: [N, 0, 0] for maps that stay."""
        self.cuda.make_current()
        try:
            self.cuda.synchronize()
        finally:
            self._given = None
        if not self._wants_map:
            return self.buffers.score, self.buffers.no_map
        return self.buffers.score, self.buffers.map

    def device_map(self) -> DeviceArray | None:
        """Return the maps of the last batch on the GPU; None if there are none."""
        if self._batch < 0:
            return None
        return self.buffers.device_map()

    def close(self) -> None:
        """Free everything but the arrays that were returned, which stay readable."""
        try:
            self.cuda.make_current()
            self._drop_graphs()
            self.session.save_kernels()
        except CudaError:
            # After an asynchronous failure every call returns that failure again, and it was
            # reported when it was first seen.
            pass
        finally:
            self.release()

    def release(self) -> None:
        """Free the objects of TensorRT and the memory, also of a lane that failed to run."""
        self.session.close()
        self.cuda.close()
        self.buffers.release()

    def _set_shape(self, shape: tuple[int, ...]) -> None:
        """Set the shape of the image. Raises EngineError, and ValueError for another shape."""
        require_shape(shape, (None, *self.session.layout.image))
        if shape[0] != self._batch:
            self._set_batch(shape[0])

    def _set_batch(self, size: int) -> None:
        """Set the batch size, for which graphs are captured again. Raises EngineError."""
        layout = self.session.layout
        if not layout.smallest_batch <= size <= layout.largest_batch:
            remedy = f"give it a batch of {layout.smallest_batch} or more"
            if size > layout.largest_batch:
                remedy = f"build it with --max-batch {size}"
            raise EngineError(
                f"{self._description} accepts batches of {layout.smallest_batch} to "
                f"{layout.largest_batch}, not {size}; {remedy}"
            )
        self._drop_graphs()
        # Stays unset if setting the size fails, so that the next call tries it again.
        self._batch = -1
        self.session.set_batch(size)
        self.buffers.set_batch(size)
        self._batch = size

    def _run(self, address: int) -> None:
        """Enqueue the work for an image at this address, or launch the graph of it."""
        if address != self._address:
            self.session.set_address("image", address)
            self._address = address
        graph = self._graphs.get(address)
        if self.uses_graph and graph is None and address in self._graphs:
            graph = self._capture()
        if graph is None:
            self._enqueue()
        else:
            self.cuda.launch(graph)
        self._remember(address, graph)

    def _enqueue(self) -> None:
        """Put the work of one batch on the stream; a graph contains the same work."""
        if self._given is None:
            self.buffers.copy_image_in()
        self.session.enqueue(self.cuda.stream)
        self.buffers.copy_score_out()

    def _capture(self) -> Any:
        """Return a graph. If this model cannot be captured, log why and return None."""
        try:
            return self.cuda.capture(self._enqueue)
        except EngineError as error:
            log(
                f"{self._description}: no CUDA graph ({error}); "
                f"frames are enqueued one by one, which is slower"
            )
            self.uses_graph = False
            return None

    def _remember(self, address: int, graph: Any) -> None:
        """Note the address as the one that was used last, and forget the oldest of too many."""
        self._graphs.pop(address, None)
        self._graphs[address] = graph
        if len(self._graphs) > MOST_GRAPHS:
            oldest = next(iter(self._graphs))
            self._drop(self._graphs.pop(oldest))

    def _drop_graphs(self) -> None:
        for graph in self._graphs.values():
            self._drop(graph)
        self._graphs.clear()

    def _drop(self, graph: Any) -> None:
        if graph is not None:
            self.cuda.drop(graph)
