"""The engines TensorRT and TensorRT-RTX: run a bundle's plan on this machine's GPU."""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from flawline.runtime.bundle import Bundle
from flawline.runtime.console import warn
from flawline.runtime.engines import Engine, EngineError, EngineOptions
from flawline.runtime.engines.arrays import host_image
from flawline.runtime.engines.cuda import Cuda, driver_missing, gpu_name, open_cuda
from flawline.runtime.engines.cuda.device_array import UINT8, DeviceArray
from flawline.runtime.engines.tensorrt.api import Module
from flawline.runtime.engines.tensorrt.find_or_build import (
    PlanRequest,
    missing_plan,
    prepare_plan,
)
from flawline.runtime.engines.tensorrt.lane import Lane
from flawline.runtime.engines.tensorrt.library import TENSORRT, TENSORRT_RTX, Library
from flawline.runtime.engines.tensorrt.plan_cache import BuildOptions, Plan, PlanRefused
from flawline.runtime.image import Image, Map


class TensorRt(Engine):
    """Runs a plan on a CUDA stream, with buffers that are allocated once for its largest batch.

    The second call with a batch size captures the work as a CUDA graph, and the later ones launch
    it. Set `uses_graph` to False before the first call to enqueue the work of every frame instead.
    With several streams, the upload of one batch runs while the GPU computes another one.

    An image may be in the memory of the GPU, as an array of another library with `__dlpack__` or
    `__cuda_array_interface__`: it is read there. Set `wants_map` to False to leave the anomaly map
    on the GPU: a map of shape [N, 0, 0] is returned, and `device_map()` gives it to libraries.
    """

    library: ClassVar[Library] = TENSORRT
    precisions: ClassVar[tuple[str, ...]] = ("fp16", "fp32", "int8")
    compiles: ClassVar[bool] = True
    gains_from_batches: ClassVar[bool] = True
    offers_streams: ClassVar[bool] = True
    has_device_memory: ClassVar[bool] = True
    untested: ClassVar[str | None] = (
        "on a GPU: building, loading and running were tested with a substitute for the driver"
    )

    def __init__(self, plan: Plan, precision: str, cuda: Cuda, streams: int | None = None) -> None:
        """Load a plan. Takes ownership of `cuda`, unless it raises EngineError.

        The EngineError is a PlanRefused if building the plan again may help.
        """
        trt = self.library.load()
        self.precision = precision
        self.description = (
            f"{self.library.engine} {trt.__version__} {cuda.device} {precision} ({cuda.provider})"
        )
        if streams is not None:
            noun = "stream" if streams == 1 else "streams"
            self.description += f", {streams} {noun}"
        self._is_closed = False
        # Those that do nothing, and those with a batch in flight, in the order of the batches.
        self._idle: deque[Lane] = deque([Lane(trt, plan, self.description, cuda)])
        self._running: deque[Lane] = deque()
        self._last: Lane = self._idle[0]
        self.largest_batch = self._last.session.layout.largest_batch
        self.in_flight = streams or 1
        self.wants_map = True
        try:
            while len(self._idle) < self.in_flight:
                self._idle.append(_further_lane(trt, plan, self.description))
        except BaseException:
            # The first one is left to the caller, who owns its `cuda`.
            self._idle.popleft().session.close()
            for lane in self._idle:
                lane.release()
            raise
        types = self.layer_types()
        if types and self.precision not in types:
            warn(
                f"warning: {self.description}: no layer of {plan.path} computes in "
                f"{self.precision}; the library has built it in {', '.join(types)}"
            )

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> TensorRt:
        """Open the engine on a stored plan or a new one. Raises EngineError, BundleError."""
        # The driver comes first, because TensorRT 8 crashes the process if there is none.
        cuda = open_cuda()
        try:
            request = PlanRequest(bundle, cls.library, options.precision, cuda, options.cache)
            plan = prepare_plan(request)
            try:
                return cls(plan, options.precision, cuda, options.streams)
            except PlanRefused as refused:
                plan = prepare_plan(request, refused)
            return cls(plan, options.precision, cuda, options.streams)
        except BaseException:
            cuda.close()
            raise

    @classmethod
    def build(
        cls,
        bundle: Bundle,
        precision: str,
        build_options: BuildOptions | None = None,
        cache: Path | None = None,
    ) -> Path:
        """Build the plan with these options, unless it is stored already, and return its path.

        TensorRT builds for this machine's GPU; TensorRT-RTX needs neither GPU nor driver. Raises
        EngineError, BundleError.
        """
        options = build_options or BuildOptions()
        if cls.library.portable:
            request = PlanRequest(bundle, cls.library, precision, None, cache, options)
            return prepare_plan(request).path
        cuda = open_cuda()
        try:
            request = PlanRequest(bundle, cls.library, precision, cuda, cache, options)
            return prepare_plan(request).path
        finally:
            cuda.close()

    @classmethod
    def uncompiled(cls, bundle: Bundle, options: EngineOptions) -> str | None:
        cuda = open_cuda()
        try:
            request = PlanRequest(bundle, cls.library, options.precision, cuda, options.cache)
            return missing_plan(request)
        finally:
            cuda.close()

    @classmethod
    def add_build_arguments(cls, parser: argparse._ActionsContainer) -> None:
        defaults = BuildOptions()
        parser.add_argument(
            "--sm",
            type=int,
            action="append",
            help="tensorrt-rtx: build for this compute capability (86, 89, 120); "
            "repeat for several",
        )
        parser.add_argument(
            "--opt-batch",
            type=int,
            help=f"batch size to optimise for; default {defaults.opt_batch}",
        )
        parser.add_argument(
            "--max-batch",
            type=int,
            help=f"largest batch size; default {defaults.max_batch}",
        )
        parser.add_argument("--dla", type=int, metavar="CORE", help="DLA core of a Jetson")

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> BuildOptions:
        options = BuildOptions()
        given: dict[str, Any] = {}
        if args.opt_batch is not None:
            given["opt_batch"] = args.opt_batch
        if args.max_batch is not None:
            given["max_batch"] = args.max_batch
        # Replaced together, because the one is checked against the other.
        return replace(options, **given, dla=args.dla, capabilities=tuple(args.sm or ()))

    @classmethod
    def missing(cls) -> str | None:
        """Say what to install before this engine can be used; None if it can."""
        return cls.library.missing() or driver_missing()

    @classmethod
    def installed(cls) -> str:
        """Return the version of the library and the name of the GPU. Raises EngineError."""
        version = cls.library.load().__version__
        return f"{version} {gpu_name()}"

    def __call__(self, image: Image) -> tuple[Map, Map]:
        """Run a batch. Raises EngineError for a batch size that the plan does not accept."""
        if self._running:
            raise RuntimeError("the results of submitted batches were not taken")
        self.submit(image)
        return self.result()

    def submit(self, image: Image) -> None:
        if self._is_closed:
            raise RuntimeError("the engine is closed")
        if not self._idle:
            raise RuntimeError(f"the results of {self.in_flight} batches were not taken")
        self._idle[0].submit(image, self.wants_map)
        self._running.append(self._idle.popleft())

    def result(self) -> tuple[Map, Map]:
        if not self._running:
            raise RuntimeError("no batch was submitted")
        self._last = self._running.popleft()
        self._idle.append(self._last)
        return self._last.result()

    def device_map(self) -> DeviceArray:
        found = self._last.device_map()
        if found is None:
            raise EngineError(
                f"{self.description}: there is no map on the GPU; run a batch first, with a bundle "
                f"that was not built for the score alone"
            )
        return found

    def layer_types(self) -> Mapping[str, int]:
        return self._last.session.layer_types(self.library.load())

    def to_device(self, image: Image) -> DeviceArray:
        """Copy an image to the memory of the GPU: uint8 [N, H, W, 3], as a call takes it."""
        cuda = self._last.cuda
        cuda.make_current()
        image = host_image(image)
        memory = cuda.shared_memory(image.nbytes)
        staged = cuda.pinned(image.nbytes)
        np.copyto(staged, np.ascontiguousarray(image).reshape(-1))
        cuda.copy_in(memory.address, staged)
        cuda.synchronize()
        return DeviceArray(memory, image.shape, UINT8)

    @property
    def uses_graph(self) -> bool:
        """Whether this class captures the work as a CUDA graph."""
        return self._last.uses_graph

    @uses_graph.setter
    def uses_graph(self, value: bool) -> None:
        for lane in self._idle:
            lane.uses_graph = value

    @property
    def graph_enabled(self) -> bool:
        """True if the work runs as a CUDA graph, captured by this class or by the library."""
        return self.uses_graph or self._last.session.captures_graphs

    def close(self) -> None:
        """Free everything but the arrays that were returned, which stay readable."""
        while self._running:
            # The GPU still writes to the buffers of a batch in flight.
            with suppress(EngineError):
                self.result()
        for lane in self._idle:
            lane.close()
        self._is_closed = True


def _further_lane(trt: Module, plan: Plan, description: str) -> Lane:
    """Return a lane with a stream of its own. Raises EngineError."""
    cuda = open_cuda()
    try:
        return Lane(trt, plan, description, cuda)
    except BaseException:
        cuda.close()
        raise


class TensorRtRtx(TensorRt):
    """TensorRT-RTX. Its plans are built anywhere (`--sm`) and compiled to the end when loaded."""

    library: ClassVar[Library] = TENSORRT_RTX
    untested: ClassVar[str | None] = (
        "on a GPU: plans were built with NVIDIA's builder, and run with a substitute for the driver"
    )
