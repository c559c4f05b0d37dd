"""A fake TensorRT that builds and runs one network, on the driver of fakecuda.c.

The network's map is the mean of the colours and its score the map's maximum.

`fake_tensorrt` makes the module of one version. Its classes have the members that tensorrt_api.json
lists for that version and no others, so that a member that does not exist fails here as it does
there.
"""

from __future__ import annotations

import ctypes
import enum
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from fakes.tensorrt_api import members
from fakes.tensorrt_builder import BUILDER_CLASSES
from fakes.tensorrt_object import Control, FakeObject
from fakes.tensorrt_runtime import RUNTIME_CLASSES

ENUMERATIONS = (
    "BuilderFlag", "ComputeCapability", "CudaGraphStrategy", "DataType", "DeviceType",
    "EngineInvalidityDiagnostics", "EngineValidity", "LayerInformationFormat",
    "NetworkDefinitionCreationFlag", "ProfilingVerbosity",
)  # fmt: skip


def fake_tensorrt(version: str, library: Path, **settings: Any) -> types.ModuleType:
    """The module of `version` on this driver. `settings` replace attributes of its Control."""
    name = "tensorrt_rtx" if version.startswith("rtx") else "tensorrt"
    trt = types.ModuleType(name)
    trt.__spec__ = ModuleSpec(name, None, origin="fake")
    trt.__version__ = version.removeprefix("rtx") + ".0"
    control = Control(trt, ctypes.CDLL(str(library)), version, **settings)
    trt.control = control
    for enumeration in ENUMERATIONS:
        values = _enumeration_values(enumeration, sorted(members(enumeration, version)))
        if values:
            setattr(trt, enumeration, enum.IntEnum(enumeration, values))
    for cls in (*BUILDER_CLASSES, *RUNTIME_CLASSES):
        if cls.__name__ in members("", version):
            setattr(trt, cls.__name__, _class_of_version(cls, control))
    return trt


def _class_of_version(cls: type, control: Control) -> type:
    """A copy of a fake class without the members that this version does not have."""
    allowed = members(cls.__name__, control.version)
    body: dict[str, Any] = dict.fromkeys(allowed)
    for name, member in vars(cls).items():
        if name.startswith("_") or name in allowed:
            body[name] = member
    body.update(_trt=control.trt, _control=control, _allowed=allowed)
    return type(cls.__name__, (FakeObject,), body)


def _enumeration_values(enumeration: str, names: list[str]) -> dict[str, int]:
    values = {}
    for i, name in enumerate(names):
        values[name] = i
        if enumeration == "ComputeCapability" and name.startswith("SM"):
            values[name] = int(name[2:])
        if enumeration == "EngineInvalidityDiagnostics":
            values[name] = 1 << i
    return values
