"""A plan that TensorRT has loaded, and the one context in which it runs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.console import log
from flawline.runtime.engines import EngineError
from flawline.runtime.engines.tensorrt.api import (
    EngineInspector,
    ICudaEngine,
    IExecutionContext,
    Module,
    Runtime,
)
from flawline.runtime.engines.tensorrt.layer_types import count_types
from flawline.runtime.engines.tensorrt.library import logger
from flawline.runtime.engines.tensorrt.plan_cache import Plan, PlanRefused
from flawline.runtime.files import write_atomically

KERNELS = "kernels.bin"  # next to the plan: what TensorRT-RTX compiled of it for this GPU


@dataclass(frozen=True)
class Layout:
    """The batch sizes that a plan accepts, and the shapes of its tensors without the batch.

    `image` is (height, width, 3); `anomaly_map` is (height, width), or None for a graph without.
    """

    smallest_batch: int
    largest_batch: int
    image: tuple[int, ...]
    anomaly_map: tuple[int, ...] | None

    def bytes_per_image(self) -> dict[str, int]:
        """Return the size of each tensor for one image: uint8 image, float32 score and map."""
        sizes = {"image": math.prod(self.image), "score": 4}
        if self.anomaly_map is not None:
            sizes["map"] = 4 * math.prod(self.anomaly_map)
        return sizes


class Session:
    """Runs a plan on addresses in device memory.

    `captures_graphs` says that the library itself runs the plan as a CUDA graph. Raises PlanRefused
    if the library does not load the plan, and another EngineError if it cannot be used.
    """

    def __init__(self, trt: Module, plan: Plan, description: str) -> None:
        self.path = plan.path
        self.captures_graphs = False
        self._description = description
        # Gives the compiled kernels, if the library has any that are worth storing.
        self._serialize_kernels: Callable[[], Any] | None = None
        self._stored_kernels = b""
        self._status = self.path.stat()
        errors = logger(trt)
        # Errors of an earlier plan would hide the reason why this one is refused.
        errors.clear()
        self._runtime: Runtime = trt.Runtime(errors)
        if plan.options.dla is not None:
            self._runtime.DLA_core = plan.options.dla
        self._engine: ICudaEngine = self._load_engine(trt)
        self._context: IExecutionContext = self._create_context(trt)
        if self._context is None:
            raise EngineError(
                f"{description} has no memory to run {self.path} ({errors.first()}); "
                f"free GPU memory"
            )
        self.layout = self._read_layout(trt)

    def set_address(self, name: str, address: int) -> None:
        """Set where the tensor `name` is in device memory."""
        self._context.set_tensor_address(name, address)

    def set_batch(self, size: int) -> None:
        """Set the batch size of the following runs. Raises EngineError."""
        if not self._context.set_input_shape("image", (size, *self.layout.image)):
            raise EngineError(
                f"{self._description} refuses a batch of {size}; "
                f"delete {self.path} to build it again"
            )

    def enqueue(self, stream: int) -> None:
        """Put one run on a CUDA stream. Raises EngineError."""
        if not self._context.execute_async_v3(stream):
            raise EngineError(
                f"{self._description} cannot run {self.path}; delete it to build it again"
            )

    def save_kernels(self) -> None:
        """Store the kernels that TensorRT-RTX compiled, so that the next start is fast."""
        if self._serialize_kernels is None:
            return
        kernels = bytes(self._serialize_kernels())
        if kernels == self._stored_kernels or not self._is_in_place():
            return
        path = self._kernels_path()
        try:
            write_atomically(path, kernels)
        except OSError as error:
            log(
                f"{self._description}: kernels cannot be saved to {path} ({reason_of(error)}), so "
                f"that each start compiles them again; {remedy_of(error)}"
            )

    def layer_types(self, trt: Module) -> Mapping[str, int]:
        """Count the layers by the precision that they compute in; empty for an older plan."""
        inspector: EngineInspector = self._engine.create_engine_inspector()
        return count_types(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Free TensorRT's objects."""
        # TensorRT requires this order.
        self._context = None
        self._serialize_kernels = None
        self._engine = None
        self._runtime = None

    def _load_engine(self, trt: Module) -> ICudaEngine:
        data = self.path.read_bytes()
        reason = _invalidity(trt, self._runtime, data)
        if reason is not None:
            raise PlanRefused(self._description, self.path, reason)
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise PlanRefused(self._description, self.path, logger(trt).first())
        return engine

    def _create_context(self, trt: Module) -> IExecutionContext | None:
        if not hasattr(trt, "CudaGraphStrategy"):
            return self._engine.create_execution_context()
        # TensorRT-RTX captures a graph itself, and compiles kernels for this GPU.
        self.captures_graphs = True
        runtime_config = self._engine.create_runtime_config()
        runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        runtime_cache = runtime_config.create_runtime_cache()
        path = self._kernels_path()
        if path.is_file():
            self._stored_kernels = path.read_bytes()
            # Kernels of another driver or GPU are refused, and compiled again.
            runtime_cache.deserialize(self._stored_kernels)
        runtime_config.set_runtime_cache(runtime_cache)
        self._serialize_kernels = runtime_cache.serialize
        return self._engine.create_execution_context(runtime_config)

    def _read_layout(self, trt: Module) -> Layout:
        """Read the tensors' shapes. Raises EngineError if they are not those of a bundle."""
        names = self._tensor_names(trt)
        shape = tuple(self._engine.get_tensor_shape("image"))
        smallest = shape[0]
        largest = shape[0]
        # A fixed batch size has no profile.
        if shape[0] == -1:
            lowest, _optimal, highest = self._engine.get_tensor_profile_shape("image", 0)
            smallest = lowest[0]
            largest = highest[0]
        anomaly_map = None
        if "map" in names:
            # The size of the map may be known only after the batch size was set.
            self._context.set_input_shape("image", (largest, *shape[1:]))
            anomaly_map = tuple(self._context.get_tensor_shape("map"))[1:]
        return Layout(smallest, largest, shape[1:], anomaly_map)

    def _tensor_names(self, trt: Module) -> list[str]:
        expected = {
            "image": trt.DataType.UINT8,
            "score": trt.DataType.FLOAT,
            "map": trt.DataType.FLOAT,
        }
        names = []
        fits = True
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            names.append(name)
            if name not in expected or self._engine.get_tensor_dtype(name) != expected[name]:
                fits = False
        if not fits or "image" not in names or "score" not in names:
            raise EngineError(
                f"{self.path} has the tensors {', '.join(names)}, which are not those of a bundle; "
                f"delete it"
            )
        return names

    def _is_in_place(self) -> bool:
        """Tell whether the folder still has this plan, and not that of another bundle."""
        try:
            return os.path.samestat(self._status, self.path.stat())
        except OSError:
            return False

    def _kernels_path(self) -> Path:
        return self.path.with_name(KERNELS)


def _invalidity(trt: Module, runtime: Runtime, plan: bytes) -> str | None:
    """Say why the library will not load this plan; None if it will or cannot say."""
    if not hasattr(trt.Runtime, "get_engine_validity"):
        return None
    # The diagnostics are a sum of bits, one for each reason.
    validity, diagnostics = runtime.get_engine_validity(plan)
    if validity != trt.EngineValidity.INVALID:
        return None
    reasons = []
    for name, bit in trt.EngineInvalidityDiagnostics.__members__.items():
        if int(bit) & int(diagnostics):
            reasons.append(name)
    return ", ".join(reasons) or "the library gives no reason"
