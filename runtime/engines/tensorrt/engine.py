"""The engines TensorRT and TensorRT-RTX: run a bundle's plan on this machine's GPU."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log
from flawline.runtime.engines import Engine, EngineError, EngineOptions
from flawline.runtime.engines.cuda import (
    Cuda,
    CudaError,
    driver_missing,
    gpu_name,
    open_cuda,
)
from flawline.runtime.engines.tensorrt.buffers import Buffers
from flawline.runtime.engines.tensorrt.find_or_build import PlanRequest, prepare_plan
from flawline.runtime.engines.tensorrt.library import TENSORRT, TENSORRT_RTX, Library
from flawline.runtime.engines.tensorrt.loaded_plan import Session
from flawline.runtime.engines.tensorrt.plan_cache import BuildOptions, Plan, PlanRefused
from flawline.runtime.image import Image, Map


class TensorRt(Engine):
    """Runs a plan on one CUDA stream, with buffers that are allocated once for its largest batch.

    The second call with a batch size captures the work as a CUDA graph, and the later ones launch
    it. Set `wants_map` to False to leave the anomaly map on the GPU: a map of shape [N, 0, 0] is
    returned. Set `uses_graph` to False before the first call to enqueue the work of every frame
    instead.
    """

    library: ClassVar[Library] = TENSORRT
    precisions: ClassVar[tuple[str, ...]] = ("fp16", "fp32", "int8")
    compiles: ClassVar[bool] = True
    gains_from_batches: ClassVar[bool] = True
    untested: ClassVar[str | None] = (
        "on a GPU: building, loading and running were tested with a substitute for the driver"
    )

    def __init__(self, plan: Plan, precision: str, cuda: Cuda) -> None:
        """Load a plan. Takes ownership of `cuda`, unless it raises EngineError.

        The EngineError is a PlanRefused if building the plan again may help.
        """
        trt = self.library.load()
        self.precision = precision
        self.description = (
            f"{self.library.engine} {trt.__version__} {cuda.device} {precision} ({cuda.provider})"
        )
        self._cuda = cuda
        self._session = Session(trt, plan, self.description)
        self.largest_batch = self._session.layout.largest_batch
        self._buffers = Buffers(cuda, self._session.layout)
        for name, address in self._buffers.device.items():
            self._session.set_address(name, address)
        self.wants_map = True
        self.uses_graph = cuda.has_graphs and not self._session.captures_graphs
        self._graph: Any = None
        self._batch = -1  # no batch size is set
        self._runs = 0  # with this batch size

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> TensorRt:
        """Open the engine on a stored plan or a new one. Raises EngineError, BundleError."""
        # The driver comes first, because TensorRT 8 crashes the process if there is none.
        cuda = open_cuda()
        try:
            request = PlanRequest(bundle, cls.library, options.precision, cuda, options.cache)
            plan = prepare_plan(request)
            try:
                return cls(plan, options.precision, cuda)
            except PlanRefused as refused:
                plan = prepare_plan(request, refused)
            return cls(plan, options.precision, cuda)
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
        self._cuda.make_current()
        if len(image) != self._batch:
            self._set_batch(len(image))
        buffers = self._buffers
        if image.shape != buffers.image.shape:
            raise ValueError(f"image {image.shape} is not {buffers.image.shape}")
        np.copyto(buffers.image, image)
        # The first run with a batch size is for warming up.
        if self.uses_graph and self._graph is None and self._runs == 1:
            self._capture()
        if self._graph is None:
            self._enqueue()
        else:
            self._cuda.launch(self._graph)
        if self.wants_map:
            buffers.copy_map_out()
        self._cuda.synchronize()
        self._runs += 1
        if not self.wants_map:
            return buffers.score, buffers.no_map
        return buffers.score, buffers.map

    @property
    def graph_enabled(self) -> bool:
        """True if the work runs as a CUDA graph, captured by this class or by the library."""
        return self.uses_graph or self._session.captures_graphs

    def _set_batch(self, size: int) -> None:
        """Set the batch size, for which a graph is captured again. Raises EngineError."""
        smallest = self._session.layout.smallest_batch
        largest = self._session.layout.largest_batch
        if not smallest <= size <= largest:
            remedy = f"give it a batch of {smallest} or more"
            if size > largest:
                remedy = f"build it with --max-batch {size}"
            raise EngineError(
                f"{self.description} accepts batches of {smallest} to {largest}, not {size}; "
                f"{remedy}"
            )
        self._drop_graph()
        # Stays unset if setting the size fails, so that the next call tries it again.
        self._batch = -1
        self._session.set_batch(size)
        self._buffers.set_batch(size)
        self._batch = size
        self._runs = 0

    def _enqueue(self) -> None:
        """Put the work of one frame on the stream; a graph contains the same work."""
        self._buffers.copy_image_in()
        self._session.enqueue(self._cuda.stream)
        self._buffers.copy_score_out()

    def _capture(self) -> None:
        """Capture the graph. If this model cannot be captured, log why and run without."""
        try:
            self._graph = self._cuda.capture(self._enqueue)
        except EngineError as error:
            log(
                f"{self.description}: no CUDA graph ({error}); "
                f"frames are enqueued one by one, which is slower"
            )
            self.uses_graph = False

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._cuda.drop(self._graph)
            self._graph = None

    def close(self) -> None:
        """Free everything but the arrays that were returned, which stay readable."""
        try:
            self._cuda.make_current()
            self._drop_graph()
            self._session.save_kernels()
        except CudaError:
            # After an asynchronous failure every call returns that failure again, and it was
            # reported when it was first seen.
            pass
        finally:
            self._session.close()
            self._cuda.close()


class TensorRtRtx(TensorRt):
    """TensorRT-RTX. Its plans are built anywhere (`--sm`) and compiled to the end when loaded."""

    library: ClassVar[Library] = TENSORRT_RTX
    untested: ClassVar[str | None] = (
        "on a GPU: plans were built with NVIDIA's builder, and run with a substitute for the driver"
    )
