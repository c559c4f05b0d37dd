"""Names for TensorRT's own types, for the annotations of this package.

TensorRT has no type stubs, and its classes have other members in every version, so that mypy sees
`Any`. The names are NVIDIA's. A test infers from these annotations which class every object has,
and holds each member that the code uses against the members of seven versions: a member that not
every version has must stand under `if hasattr(Class, "member")`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Module: TypeAlias = Any  # tensorrt or tensorrt_rtx itself
Builder: TypeAlias = Any
EngineInspector: TypeAlias = Any
IBuilderConfig: TypeAlias = Any
ICudaEngine: TypeAlias = Any
IExecutionContext: TypeAlias = Any
ILayer: TypeAlias = Any
INetworkDefinition: TypeAlias = Any
OnnxParser: TypeAlias = Any
Runtime: TypeAlias = Any
