"""The fake TensorRT's classes that build a plan."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from fakes.tensorrt_object import SIZE, FakeObject


class ILogger(FakeObject):
    INTERNAL_ERROR, ERROR, WARNING = range(3)


class IProgressMonitor(FakeObject):
    pass


class Builder(FakeObject):
    def __init__(self, logger: Any) -> None:
        self._control.require_driver()
        self._logger = logger

    @property
    def num_DLA_cores(self) -> int:
        return self._control.dla_cores

    def create_network(self, flags: int) -> Any:
        return self._trt.INetworkDefinition(flags)

    def create_builder_config(self) -> Any:
        return self._trt.IBuilderConfig()

    def create_optimization_profile(self) -> Any:
        return self._trt.IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        if not self._report_progress(config.__dict__.get("progress_monitor")):
            return None
        self._control.builds.append(_build_record(network, config))
        if self._control.refuse_build:
            self._logger.log(ILogger.WARNING, "slow")
            self._logger.log(ILogger.ERROR, "no tactic for /body/Conv\nand more")
            return None
        content = {"version": self._control.version, "batches": config._batches}
        verbosity = config.__dict__.get("profiling_verbosity")
        content["details"] = getattr(verbosity, "name", "") == "DETAILED"
        return b"PLAN" + json.dumps(content).encode()

    def _report_progress(self, monitor: Any) -> bool:
        """False if the monitor stops the build."""
        if monitor is None:
            return True
        monitor.phase_start("Building", None, 4)
        for step in range(4):
            if not monitor.step_complete("Building", step):
                return False
        monitor.phase_finish("Building")
        return True


def _build_record(network: Any, config: Any) -> dict[str, Any]:
    """What a build was asked for. `restricted` are the layers that are restricted to a type."""
    restricted = {}
    for layer in network._layers:
        if layer._restricted:
            restricted[layer.name] = layer.__dict__["precision"].name
    record = dict(config._settings)
    record.update(onnx=network._onnx, typing=network._typing, restricted=restricted)
    for name, value in config.__dict__.items():
        if not name.startswith("_"):
            record[name] = getattr(value, "name", value)
    return record


class INetworkDefinition(FakeObject):
    def __init__(self, flags: int) -> None:
        flag = self._trt.NetworkDefinitionCreationFlag
        self._typing = sorted(f.name for f in flag if flags >> int(f) & 1)
        if "EXPLICIT_BATCH" in flag.__members__ and "STRONGLY_TYPED" not in flag.__members__:
            assert "EXPLICIT_BATCH" in self._typing, "TensorRT 8 reads no ONNX file without it"
        self._onnx = ""
        self._layers = []
        for name, dtype in self._control.layers:
            self._layers.append(self._trt.ILayer(name, self._trt.DataType[dtype]))

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_layer(self, i: int) -> Any:
        return self._layers[i]

    def get_input(self, i: int) -> Any:
        return self._trt.ITensor((self._control.batch, SIZE, SIZE, 3), self._trt.DataType.UINT8)


class ITensor(FakeObject):
    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape = shape
        self.dtype = dtype


class ILayer(FakeObject):
    num_outputs = 1

    def __init__(self, name: str, dtype: Any) -> None:
        self.name = name
        self._dtype = dtype
        self._restricted = False

    def get_output(self, i: int) -> Any:
        return self._trt.ITensor((1,), self._dtype)

    def set_output_type(self, i: int, dtype: Any) -> None:
        assert self._dtype.name == "FLOAT", "only a floating-point output has a choice"
        self._restricted = True


class OnnxParser(FakeObject):
    num_errors = 1

    def __init__(self, network: Any, logger: Any) -> None:
        self._network = network

    def parse(self, model: bytes, path: str) -> bool:
        self._network._onnx = Path(path).name
        return b"rubbish" not in model

    def get_error(self, i: int) -> Any:
        return self._trt.ParserError()


class ParserError(FakeObject):
    def desc(self) -> str:
        return "no importer for Rubbish\nin line 7"


class IOptimizationProfile(FakeObject):
    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        assert name == "image"
        self._batches = [low[0], best[0], high[0]]


class IBuilderConfig(FakeObject):
    def __init__(self) -> None:
        self._settings: dict[str, Any] = {"flags": [], "cleared": [], "capabilities": []}
        self._batches = [1, 1, 1]

    def set_flag(self, flag: Any) -> None:
        self._settings["flags"].append(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self._settings["cleared"].append(flag.name)

    def set_compute_capability(self, capability: Any, i: int) -> bool:
        assert i < self.num_compute_capabilities
        self._settings["capabilities"].append(capability.name)
        return True

    def add_optimization_profile(self, profile: Any) -> int:
        self._batches = profile._batches
        self._settings["batches"] = profile._batches
        return 0

    def create_timing_cache(self, data: bytes) -> Any:
        if self._control.portable:
            warnings.warn("a timing cache has no effect", DeprecationWarning, stacklevel=2)
        return self._trt.ITimingCache(data)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache._data not in (b"", b"TIMINGS"):
            return False
        self._settings["timings"] = cache._data
        return True

    def get_timing_cache(self) -> Any:
        return self._trt.ITimingCache(b"TIMINGS")


class ITimingCache(FakeObject):
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> bytes:
        return self._data


BUILDER_CLASSES = (
    ILogger,
    IProgressMonitor,
    Builder,
    INetworkDefinition,
    ITensor,
    ILayer,
    OnnxParser,
    ParserError,
    IOptimizationProfile,
    IBuilderConfig,
    ITimingCache,
)
