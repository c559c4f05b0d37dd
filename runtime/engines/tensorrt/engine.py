"""TensorRT and TensorRT-RTX: the plan of a bundle on this machine's GPU. runtime/trt_build.py makes the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from flawline.runtime.bundle import Bundle
from flawline.runtime.console import log
from flawline.runtime.engines import Engine, EngineError, EngineOptions
from flawline.runtime.engines.cuda.driver import Cuda, CudaError, driver_missing, open_cuda
from flawline.runtime.engines.tensorrt.build import build, ensure_plan
from flawline.runtime.engines.tensorrt.library import library_missing, load, logger
from flawline.runtime.engines.tensorrt.plan import Plan, PlanRefused
from flawline.runtime.files import write_atomically
from flawline.runtime.image import Image, Map

KERNELS = "kernels.bin"  # beside the plan: what TensorRT-RTX compiled of it for this GPU


class TensorRt(Engine):
    """Runs a plan on one stream with buffers for its largest batch, made once: no frame allocates.

    The second call at a batch size records the work as a CUDA graph, which the following ones launch. Set `wants_map`
    to False where only the score is read: the map stays on the GPU and what is returned for it is [N, 0, 0]. Set
    `uses_graph` to False before the first call to enqueue every frame instead.
    """

    name: ClassVar[str] = "tensorrt"
    precisions: ClassVar[tuple[str, ...]] = ("fp16", "fp32", "int8")
    compiles: ClassVar[bool] = True
    untested: ClassVar[str | None] = (
        "on a GPU: building, loading and running have met a stand-in driver only"
    )

    def __init__(self, plan: Plan, precision: str, cuda: Cuda) -> None:
        """Takes over `cuda` unless it raises: PlanRefused, or another EngineError."""
        self.wants_map = True
        self.precision = precision
        self._cuda, self._path = cuda, plan.path
        self._kernels: Callable[[], Any] | None = (
            None  # gives what was compiled, where that is worth keeping
        )
        self._kept_kernels = b""
        self._graph: Any = None
        trt = load(self.name)
        self.description = f"{self.name} {trt.__version__} {cuda.device} {precision}"
        self._load(trt, plan)
        self._allocate(trt)

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> TensorRt:
        cuda = open_cuda()  # before TensorRT: version 8 crashes without a driver
        try:
            plan = ensure_plan(bundle, cls.name, options.precision, cuda, options.cache)
            try:
                return cls(plan, options.precision, cuda)
            except PlanRefused as refused:
                plan = ensure_plan(
                    bundle, cls.name, options.precision, cuda, options.cache, refused=refused
                )
            return cls(plan, options.precision, cuda)
        except BaseException:
            cuda.close()
            raise

    @classmethod
    def build(
        cls, bundle: Bundle, precision: str, build_options: Any = None, cache: Path | None = None
    ) -> Path:
        return build(bundle, cls.name, precision, build_options, cache)

    @classmethod
    def missing(cls) -> str | None:
        return library_missing(cls.name) or driver_missing()

    def _load(self, trt: Any, plan: Plan) -> None:
        log = logger(trt)
        log.errors.clear()
        runtime = self._runtime = trt.Runtime(log)
        if plan.options.dla is not None:
            runtime.DLA_core = plan.options.dla
        data = plan.path.read_bytes()
        if why := _invalid(trt, runtime, data):
            raise PlanRefused(self.description, plan.path, why)
        engine: Any = runtime.deserialize_cuda_engine(data)
        self._engine: Any = engine
        if engine is None:
            raise PlanRefused(self.description, plan.path, log.first())
        self._context: Any = self._make_context(trt, engine)
        if self._context is None:
            raise EngineError(
                f"{self.description} has no room to run {plan.path} ({log.first()}); free GPU memory"
            )

    def _make_context(self, trt: Any, engine: Any) -> Any:
        self.uses_graph = self._cuda.has_graphs
        if not hasattr(trt, "CudaGraphStrategy"):
            return engine.create_execution_context()
        # TensorRT-RTX captures by itself, and compiles kernels for this GPU that are worth keeping.
        self.uses_graph = False
        runtime_config = engine.create_runtime_config()
        runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        runtime_cache = runtime_config.create_runtime_cache()
        kept = self._path.with_name(KERNELS)
        self._kept_kernels = kept.read_bytes() if kept.is_file() else b""
        if self._kept_kernels:
            runtime_cache.deserialize(
                self._kept_kernels
            )  # refused where driver or GPU changed: compiled anew
        runtime_config.set_runtime_cache(runtime_cache)
        self._kernels = runtime_cache.serialize
        return engine.create_execution_context(runtime_config)

    def _allocate(self, trt: Any) -> None:
        """Buffers for the largest batch. Raises EngineError where the plan is not one of a bundle's graph."""
        engine, context, cuda = self._engine, self._context, self._cuda
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        expected = {
            "image": trt.DataType.UINT8,
            "score": trt.DataType.FLOAT,
            "map": trt.DataType.FLOAT,
        }
        wrong = [n for n in names if n not in expected or engine.get_tensor_dtype(n) != expected[n]]
        if wrong or not {"image", "score"} <= set(names):
            raise EngineError(
                f"{self._path} takes or gives {', '.join(names)}, which is no bundle's graph; delete it"
            )
        shape = tuple(engine.get_tensor_shape("image"))
        low, _, high = (
            engine.get_tensor_profile_shape("image", 0) if shape[0] == -1 else (shape, shape, shape)
        )
        self._least, self._most, self._size = low[0], high[0], shape[1:]
        context.set_input_shape("image", (self._most, *self._size))
        self._map_size = tuple(context.get_tensor_shape("map"))[1:] if "map" in names else (0, 0)
        sizes = {"image": int(np.prod(self._size)), "score": 4}
        if "map" in names:
            sizes["map"] = 4 * int(np.prod(self._map_size))
        self._device = {name: cuda.allocate(self._most * size) for name, size in sizes.items()}
        self._host = {name: cuda.pinned(self._most * size) for name, size in sizes.items()}
        self._bytes = sizes
        self._batch = -1
        for name, address in self._device.items():
            context.set_tensor_address(name, address)

    def __call__(self, image: Image) -> tuple[Map, Map]:
        cuda = self._cuda
        cuda.make_current()
        if len(image) != self._batch:
            self._set_batch(len(image))
        if image.shape != self._image.shape:
            raise ValueError(f"image {image.shape} is not {self._image.shape}")
        np.copyto(self._image, image)
        if self._graph is None and self.uses_graph and self._runs == 1:
            self._capture()
        if self._graph is not None:
            cuda.launch(self._graph)
        else:
            self._enqueue()
        if self.wants_map and self._map.size:
            cuda.copy_out(self._map, self._device["map"])
        cuda.synchronize()
        self._runs += 1
        return self._score, self._map if self.wants_map else self._no_map

    def _set_batch(self, n: int) -> None:
        """Make this the batch size: views on the buffers, and a graph to be recorded after one run to warm up."""
        if not self._least <= n <= self._most:
            remedy = f"; build it with --max-batch {n}" if n > self._most else ""
            raise EngineError(
                f"{self.description} takes batches of {self._least} to {self._most}, not {n}{remedy}"
            )
        self._drop_graph()
        self._batch = -1
        context = self._context
        if not context.set_input_shape("image", (n, *self._size)):
            raise EngineError(
                f"{self.description} refuses a batch of {n}; delete {self._path} to build it again"
            )
        host = {name: buffer[: n * self._bytes[name]] for name, buffer in self._host.items()}
        self._image = host["image"].reshape(n, *self._size)
        self._score: Map = host["score"].view(np.float32)
        self._no_map: Map = np.empty((n, 0, 0), np.float32)
        self._map: Map = (
            host["map"].view(np.float32).reshape(n, *self._map_size)
            if "map" in host
            else self._no_map
        )
        self._batch, self._runs = n, 0

    def _enqueue(self) -> None:
        """What every frame does on the stream, and what a graph of it holds."""
        context = self._context
        self._cuda.copy_in(self._device["image"], self._image)
        if not context.execute_async_v3(self._cuda.stream):
            raise EngineError(
                f"{self.description} cannot run {self._path}; delete it to build it again"
            )
        self._cuda.copy_out(self._score, self._device["score"])

    def _capture(self) -> None:
        """Record the graph; where this model cannot be recorded, say so and go on without."""
        try:
            self._graph = self._cuda.capture(self._enqueue)
        except (CudaError, EngineError) as error:
            log(
                f"{self.description}: no CUDA graph ({error}); frames are enqueued one by one, which is slower"
            )
            self.uses_graph = False

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._cuda.drop(self._graph)
            self._graph = None

    def close(self) -> None:
        """Arrays that were returned stay readable."""
        try:
            self._cuda.make_current()
            self._drop_graph()
            self._keep_kernels()
        except CudaError:
            pass  # after an asynchronous failure every call repeats it, and it was told already
        finally:
            self._context = self._kernels = self._engine = self._runtime = (
                None  # in the order that TensorRT wants
            )
            self._cuda.close()

    def _keep_kernels(self) -> None:
        if self._kernels is None:
            return
        kernels, path = bytes(self._kernels()), self._path.with_name(KERNELS)
        if kernels != self._kept_kernels:
            try:
                write_atomically(path, kernels)
            except OSError as error:
                log(
                    f"{self.description}: kernels are not kept in {path} ({error.strerror}): each start compiles them"
                )


class TensorRtRtx(TensorRt):
    """Its plans are built anywhere (`--sm`) and compiled to the end for this GPU when they are loaded."""

    name: ClassVar[str] = "tensorrt-rtx"
    untested: ClassVar[str | None] = (
        "on a GPU: plans come from NVIDIA's builder, running them has met a stand-in only"
    )


def _invalid(trt: Any, runtime: Any, plan: bytes) -> str | None:
    """Why the library says that it will not load this plan; None where it does not say."""
    if not hasattr(trt.Runtime, "get_engine_validity"):
        return None
    validity, diagnostics = runtime.get_engine_validity(plan)
    if validity != trt.EngineValidity.INVALID:
        return None
    bits = trt.EngineInvalidityDiagnostics.__members__.items()
    return (
        ", ".join(name for name, bit in bits if int(bit) & int(diagnostics))
        or "it does not say why"
    )
