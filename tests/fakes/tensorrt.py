"""A TensorRT that builds and runs one network, on the driver of fakecuda.c: map = mean of the colours, score = maximum.

`pretend` makes the module of one version. Its classes have the members that tensorrt_api.json lists for that version
and no others, so that a member which is not there fails here as it does in that version.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import json
import types
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

API = json.loads((Path(__file__).parents[1] / "golden" / "tensorrt_api.json").read_text())
SIZE = 64
KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_long)
_launches: dict[int, Callable[[], None]] = {}
_numbers = itertools.count()
_run = KERNEL(lambda number: _launches[number]())


def members(name: str, version: str) -> set[str]:
    """Of a class of this version; of the module where `name` is empty."""
    at = API["versions"].index(version)
    return {
        m
        for pattern, found in API["classes"].get(name, {}).items()
        if pattern[at] == "1"
        for m in found
    }


def pretend(version: str, library: Path, **changes: Any) -> types.ModuleType:
    """The module of `version` over this driver. `changes` set what Behaviour has."""
    name = "tensorrt_rtx" if version.startswith("rtx") else "tensorrt"
    trt = types.ModuleType(name)
    trt.__spec__ = ModuleSpec(name, None, origin="pretend")
    trt.__version__ = version.removeprefix("rtx") + ".0"
    trt.behaviour = behaviour = Behaviour(trt, ctypes.CDLL(str(library)), version, **changes)
    for enumeration in ENUMERATIONS:
        if found := sorted(members(enumeration, version)):
            setattr(trt, enumeration, enum.IntEnum(enumeration, _values(enumeration, found)))
    for cls in CLASSES:
        if cls.__name__ in members("", version):
            allowed = members(cls.__name__, version)
            body = {k: v for k, v in vars(cls).items() if k.startswith("_") or k in allowed}
            body.update(
                dict.fromkeys(allowed - set(body)), _trt=trt, _to=behaviour, _allowed=allowed
            )
            setattr(trt, cls.__name__, type(cls.__name__, (Object,), body))
    return trt


ENUMERATIONS = (
    "BuilderFlag", "ComputeCapability", "CudaGraphStrategy", "DataType", "DeviceType", "EngineInvalidityDiagnostics",
    "EngineValidity", "MemoryPoolType", "NetworkDefinitionCreationFlag",
)  # fmt: skip


def _values(enumeration: str, found: list[str]) -> dict[str, int]:
    if enumeration == "ComputeCapability":
        return {m: int(m[2:]) if m.startswith("SM") else i for i, m in enumerate(sorted(found))}
    return {
        m: 1 << i if enumeration == "EngineInvalidityDiagnostics" else i
        for i, m in enumerate(found)
    }


class Behaviour:
    """What a test orders of the module, and what it did."""

    def __init__(self, trt: Any, driver: Any, version: str, **changes: Any) -> None:
        self.trt, self.driver, self.version = trt, driver, version
        self.portable = version.startswith("rtx")
        self.layers = [("/body/Conv", "FLOAT"), ("/head/Pow", "FLOAT"), ("/head/Shape", "INT32")]
        self.outputs = ["score", "map"]
        self.batch = -1  # of the graph
        self.refuse_plans = self.refuse_build = self.refuse_context = False
        self.dla_cores = 0
        self.builds: list[dict[str, Any]] = []
        self.contexts: list[Any] = []
        for name, value in changes.items():
            setattr(self, name, value)

    def need_driver(self) -> None:
        if not self.portable and not self.driver.fake_calls(b"cuInit"):
            raise AssertionError("TensorRT 8 crashes here: nobody looked for the driver")


class Object:
    _trt: Any
    _to: Behaviour
    _allowed: set[str]

    def __setattr__(self, name: str, value: Any) -> None:
        if (
            not name.startswith("_")
            and name not in self._allowed
            and type(self).__mro__[1] is Object
        ):
            raise AttributeError(f"{type(self).__name__} of {self._to.version} has no {name}")
        object.__setattr__(self, name, value)


class ILogger(Object):
    INTERNAL_ERROR, ERROR, WARNING = range(3)


class IProgressMonitor(Object):
    pass


class Builder(Object):
    def __init__(self, logger: Any) -> None:
        self._to.need_driver()
        self._logger = logger

    @property
    def num_DLA_cores(self) -> int:
        return self._to.dla_cores

    def create_network(self, flags: int) -> Any:
        return self._trt.INetworkDefinition(flags)

    def create_builder_config(self) -> Any:
        return self._trt.IBuilderConfig()

    def create_optimization_profile(self) -> Any:
        return self._trt.IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        if monitor := config.__dict__.get("progress_monitor"):
            monitor.phase_start("Building", None, 4)
            for step in range(4):
                if not monitor.step_complete("Building", step):
                    return None
            monitor.phase_finish("Building")
        held = {
            layer.name: layer.__dict__["precision"].name for layer in network._layers if layer._held
        }
        built = {**config._settings, "onnx": network._onnx, "typing": network._typing, "held": held}
        built.update(
            {k: getattr(v, "name", v) for k, v in config.__dict__.items() if not k.startswith("_")}
        )
        self._to.builds.append(built)
        if self._to.refuse_build:
            self._logger.log(ILogger.WARNING, "slow")
            self._logger.log(ILogger.ERROR, "no tactic for /body/Conv\nand more")
            return None
        return (
            b"PLAN" + json.dumps({"version": self._to.version, "batches": config._batches}).encode()
        )


class INetworkDefinition(Object):
    def __init__(self, flags: int) -> None:
        flag = self._trt.NetworkDefinitionCreationFlag
        self._typing = sorted(f.name for f in flag if flags >> int(f) & 1)
        if "EXPLICIT_BATCH" in flag.__members__ and "STRONGLY_TYPED" not in flag.__members__:
            assert "EXPLICIT_BATCH" in self._typing, "TensorRT 8 reads no ONNX without"
        self._onnx = ""
        self._layers = [
            self._trt.ILayer(name, self._trt.DataType[kind]) for name, kind in self._to.layers
        ]

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_layer(self, i: int) -> Any:
        return self._layers[i]

    def get_input(self, i: int) -> Any:
        return self._trt.ITensor((self._to.batch, SIZE, SIZE, 3), self._trt.DataType.UINT8)


class ITensor(Object):
    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype = shape, dtype


class ILayer(Object):
    num_outputs = 1

    def __init__(self, name: str, dtype: Any) -> None:
        self.name, self._dtype, self._held = name, dtype, False

    def get_output(self, i: int) -> Any:
        return self._trt.ITensor((1,), self._dtype)

    def set_output_type(self, i: int, dtype: Any) -> None:
        assert self._dtype.name == "FLOAT", "only a floating output has a choice"
        self._held = True


class OnnxParser(Object):
    num_errors = 1

    def __init__(self, network: Any, logger: Any) -> None:
        self._network = network

    def parse_from_file(self, path: str) -> bool:
        self._network._onnx = Path(path).name
        return b"rubbish" not in Path(path).read_bytes()

    def get_error(self, i: int) -> Any:
        return self._trt.ParserError()


class ParserError(Object):
    def desc(self) -> str:
        return "no importer for Rubbish\nin line 7"


class IOptimizationProfile(Object):
    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        assert name == "image"
        self._batches = [low[0], best[0], high[0]]


class IBuilderConfig(Object):
    def __init__(self) -> None:
        self._settings: dict[str, Any] = {
            "flags": [],
            "cleared": [],
            "capabilities": [],
            "pools": {},
        }
        self._batches = [1, 1, 1]

    def set_flag(self, flag: Any) -> None:
        self._settings["flags"].append(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self._settings["cleared"].append(flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self._settings["pools"][pool.name] = size

    def set_compute_capability(self, capability: Any, i: int) -> bool:
        assert i < self.num_compute_capabilities
        self._settings["capabilities"].append(capability.name)
        return True

    def add_optimization_profile(self, profile: Any) -> int:
        self._batches = profile._batches
        self._settings["batches"] = profile._batches
        return 0

    def create_timing_cache(self, data: bytes) -> Any:
        if self._to.portable:
            warnings.warn("a timing cache has no effect", DeprecationWarning, stacklevel=2)
        return self._trt.ITimingCache(data)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache._data not in (b"", b"TIMINGS"):
            return False
        self._settings["timings"] = cache._data
        return True

    def get_timing_cache(self) -> Any:
        return self._trt.ITimingCache(b"TIMINGS")


class ITimingCache(Object):
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> bytes:
        return self._data


class Runtime(Object):
    def __init__(self, logger: Any) -> None:
        self._to.need_driver()
        self._logger = logger

    def get_engine_validity(self, plan: bytes) -> tuple[Any, int]:
        if not plan.startswith(b"PLAN"):
            bits = self._trt.EngineInvalidityDiagnostics
            return self._trt.EngineValidity.INVALID, int(bits.MALFORMED_ENGINE) | int(
                bits.VERSION_MISMATCH
            )
        return self._trt.EngineValidity.VALID, 0

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        content = json.loads(plan[4:]) if plan.startswith(b"PLAN") else {}
        if content.get("version") != self._to.version or self._to.refuse_plans:
            self._logger.log(ILogger.ERROR, "Version tag does not match")
            return None
        engine = self._trt.ICudaEngine()
        engine._batches, engine._dla = content["batches"], self.__dict__.get("DLA_core")
        return engine


class ICudaEngine(Object):
    _batches: list[int]

    @property
    def num_io_tensors(self) -> int:
        return 1 + len(self._to.outputs)

    def get_tensor_name(self, i: int) -> str:
        return ["image", *self._to.outputs][i]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._trt.DataType.UINT8 if name == "image" else self._trt.DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """As TensorRT infers it: of the map it may know the sizes only once the batch is set."""
        batch = self._to.batch
        return {"image": (batch, SIZE, SIZE, 3), "score": (batch,)}.get(name, (batch, -1, SIZE))

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert self._to.batch == -1, "a static graph has no profile"
        return [(n, SIZE, SIZE, 3) for n in self._batches]

    def create_runtime_config(self) -> Any:
        return self._trt.IRuntimeConfig()

    def create_execution_context(self, runtime_config: Any = None) -> Any:
        if self._to.refuse_context:
            return None
        context = self._trt.IExecutionContext()
        context._engine, context._config = self, runtime_config
        self._to.contexts.append(context)
        return context


class IRuntimeConfig(Object):
    def create_runtime_cache(self) -> Any:
        return self._trt.IRuntimeCache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self._kernels = cache
        return True


class IRuntimeCache(Object):
    _loaded = b""

    def deserialize(self, blob: bytes) -> bool:
        self._loaded = blob
        return blob == b"KERNELS"

    def serialize(self) -> bytes:
        return b"KERNELS"


class IExecutionContext(Object):
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
        return {"image": (self._batch, SIZE, SIZE, 3), "score": (self._batch,)}.get(
            name, (self._batch, SIZE, SIZE)
        )

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        """Put the arithmetic for this batch and these addresses on the stream, as kernel launches would be."""
        number, batch, addresses = next(_numbers), self._batch, dict(self._addresses)
        _launches[number] = lambda: _compute(batch, addresses)
        self._to.driver.fake_launch(_run, ctypes.c_long(number), ctypes.c_void_p(stream))
        return batch > 0


def _compute(batch: int, addresses: dict[str, int]) -> None:
    def at(name: str, shape: tuple[int, ...], kind: Any) -> Any:
        return np.ctypeslib.as_array(
            (kind * int(np.prod(shape))).from_address(addresses[name])
        ).reshape(shape)

    heat = at("image", (batch, SIZE, SIZE, 3), ctypes.c_uint8).astype(np.float32).mean(-1)
    at("score", (batch,), ctypes.c_float)[:] = heat.max((1, 2))
    if "map" in addresses:
        at("map", (batch, SIZE, SIZE), ctypes.c_float)[:] = heat


CLASSES = tuple(
    Object.__subclasses__()
)  # with all members; before `pretend` derives those of a version
