"""The fake TensorRT's classes that load and run a plan."""

from __future__ import annotations

import ctypes
import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from fakes.tensorrt_builder import ILogger
from fakes.tensorrt_object import SIZE, FakeObject

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_long)
_launches: dict[int, Callable[[], None]] = {}
_numbers = itertools.count()
_run_kernel = _KERNEL(lambda number: _launches[number]())


class Runtime(FakeObject):
    def __init__(self, logger: Any) -> None:
        self._control.require_driver()
        self._logger = logger

    def get_engine_validity(self, plan: bytes) -> tuple[Any, int]:
        if plan.startswith(b"PLAN"):
            return self._trt.EngineValidity.VALID, 0
        bits = self._trt.EngineInvalidityDiagnostics
        diagnostics = int(bits.MALFORMED_ENGINE) | int(bits.VERSION_MISMATCH)
        return self._trt.EngineValidity.INVALID, diagnostics

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        content = json.loads(plan[4:]) if plan.startswith(b"PLAN") else {}
        if content.get("version") != self._control.version or self._control.refuse_plans:
            self._logger.log(ILogger.ERROR, "Version tag does not match")
            return None
        engine = self._trt.ICudaEngine()
        engine._batches = content["batches"]
        engine._details = content.get("details", False)
        engine._dla = self.__dict__.get("DLA_core")
        return engine


class ICudaEngine(FakeObject):
    _batches: list[int]
    _details: bool

    def create_engine_inspector(self) -> Any:
        inspector = self._trt.EngineInspector()
        inspector._details = self._details
        return inspector

    @property
    def num_io_tensors(self) -> int:
        return 1 + len(self._control.outputs)

    def get_tensor_name(self, i: int) -> str:
        return ["image", *self._control.outputs][i]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._trt.DataType.UINT8 if name == "image" else self._trt.DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """As TensorRT infers it: it may know the sizes of the map only after the batch is set."""
        batch = self._control.batch
        shapes: dict[str, tuple[int, ...]] = {"image": (batch, SIZE, SIZE, 3), "score": (batch,)}
        return shapes.get(name, (batch, -1, SIZE))

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert self._control.batch == -1, "a static graph has no profile"
        return [(n, SIZE, SIZE, 3) for n in self._batches]

    def create_runtime_config(self) -> Any:
        return self._trt.IRuntimeConfig()

    def create_execution_context(self, runtime_config: Any = None) -> Any:
        if self._control.refuse_context:
            return None
        context = self._trt.IExecutionContext()
        context._engine = self
        context._config = runtime_config
        self._control.contexts.append(context)
        return context


class EngineInspector(FakeObject):
    _details: bool

    def get_engine_information(self, layout: Any) -> str:
        """As each version writes it: from 11 on, the type has a key of its own."""
        assert layout == self._trt.LayerInformationFormat.JSON
        version = self._control.version
        key = "Datatype" if version.startswith(("11", "rtx")) else "Format/Datatype"
        layers: list[Any] = []
        for number, kind in enumerate(self._control.types):
            name = f"layer {number}"
            tensors = [{"Name": "x", "Location": "Device", key: kind}]
            details = {"Name": name, "LayerType": "kgen", "Inputs": tensors, "Outputs": tensors}
            layers.append(details if self._details else name)
        return json.dumps({"Layers": layers})


class IRuntimeConfig(FakeObject):
    def create_runtime_cache(self) -> Any:
        return self._trt.IRuntimeCache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self._kernels = cache
        return True


class IRuntimeCache(FakeObject):
    _loaded = b""

    def deserialize(self, blob: bytes) -> bool:
        self._loaded = blob
        return blob == b"KERNELS"

    def serialize(self) -> bytes:
        return b"KERNELS"


class IExecutionContext(FakeObject):
    def __init__(self) -> None:
        self._addresses: dict[str, int] = {}
        self._batch = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine._batches
        self._batch = shape[0]
        return name == "image" and low <= shape[0] <= high and shape[1:] == (SIZE, SIZE, 3)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if not self._batch:
            return self._engine.get_tensor_shape(name)
        shapes: dict[str, tuple[int, ...]] = {
            "image": (self._batch, SIZE, SIZE, 3),
            "score": (self._batch,),
        }
        return shapes.get(name, (self._batch, SIZE, SIZE))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        """Enqueue the arithmetic for this batch and these addresses, as TensorRT does kernels."""
        number = next(_numbers)
        batch = self._batch
        addresses = dict(self._addresses)
        _launches[number] = lambda: _compute(batch, addresses)
        driver = self._control.driver
        driver.fake_launch(_run_kernel, ctypes.c_long(number), ctypes.c_void_p(stream))
        return batch > 0


def _compute(batch: int, addresses: dict[str, int]) -> None:
    def array(name: str, shape: tuple[int, ...], kind: Any) -> Any:
        memory = (kind * int(np.prod(shape))).from_address(addresses[name])
        return np.ctypeslib.as_array(memory).reshape(shape)

    image = array("image", (batch, SIZE, SIZE, 3), ctypes.c_uint8)
    anomaly_map = image.astype(np.float32).mean(-1)
    array("score", (batch,), ctypes.c_float)[:] = anomaly_map.max((1, 2))
    if "map" in addresses:
        array("map", (batch, SIZE, SIZE), ctypes.c_float)[:] = anomaly_map


RUNTIME_CLASSES = (
    Runtime,
    ICudaEngine,
    EngineInspector,
    IRuntimeConfig,
    IRuntimeCache,
    IExecutionContext,
)
