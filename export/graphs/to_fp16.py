"""A float32 graph to the same graph with FP16 written in: what strongly typed engines run as it stands.

TensorRT 11 and TensorRT-RTX compute every node in the type that the graph gives it, so what FP16 would break must be
FP32 in the graph: squares beyond 65504, products of exponentials, sums over thousands of terms. A method names the
modules that hold these, its islands. Everything else becomes FP16, weights included, and Casts stand only where the
type changes, each once.

Own pass, because the kept tools (onnxconverter-common, ModelOpt's autocast) break an island: they narrow its result
where a Squeeze or ReduceMax follows and widen it again for the next island, after the damage. Both accept an island
that is not there, and replace a weight that underflows by the smallest they know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from flawline.export.parity import ExportError

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
SUFFIX: dict[int, str] = {FLOAT: "_fp32", HALF: "_fp16"}
# Types whose every value FP16 holds; of wider integers 2049 is the first it does not. A byte less a rounded mean is
# exact up to 128, since both are multiples of 1/16: so the mean's rounding shifts all grey levels alike, where an FP32
# difference that is rounded afterwards would be off for each in its own way, which measures worse.
EXACT_INTEGERS = {TensorProto.BOOL, TensorProto.INT8, TensorProto.UINT8}
# What moves or selects values and computes none. It keeps the FP32 that an island gave it: narrowing there would
# undo the island for the next one.
MOVERS = {
    "ArgMax", "ArgMin", "Cast", "Clip", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "Identity", "Max", "Min", "Pad", "ReduceMax", "ReduceMin", "Reshape", "Slice", "Split", "Squeeze", "Tile", "TopK",
    "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
# Relative L2 error of a rounded weight. FP16 rounds to 0.0005; more comes of values below its normal range (6e-5),
# which lose digits or vanish. Single ones may: they weigh nothing beside the rest of their tensor.
WEIGHT_ERROR = 0.01


def to_fp16(model: bytes, islands: Sequence[str]) -> bytes:
    """The serialised graph in FP16, inputs and outputs as they were; nodes of `islands` (see in_island) stay FP32.

    Raises ExportError for an island that matches no node, and for a weight outside of islands that FP16 cannot hold.
    """
    proto = onnx.load_model_from_string(model)
    kinds = {attribute.type for node in proto.graph.node for attribute in node.attribute}
    if kinds & {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}:
        raise ExportError(
            "the graph branches or loops, into which FP16 is not written; export a module without either"
        )
    _fold_constants(proto)
    for island in islands:
        if not any(in_island(node.name, (island,)) for node in proto.graph.node):
            raise ExportError(
                f"FP32 island {island!r} matches no node of the graph; correct the method's fp32_islands "
                f"(a module path as /smooth, or the name of a node)"
            )
    del proto.graph.value_info[
        :
    ]  # the types in there would be wrong now; whoever reads the graph infers them
    _Writer(proto, islands).write()
    onnx.checker.check_model(proto, full_check=True)  # infers all types and shapes anew, strictly
    written: bytes = proto.SerializeToString()
    return written


def in_island(name: str, islands: Iterable[str]) -> bool:
    """Is the node called `name` one of these modules' or nodes' own? /tail holds /tail/Conv, not /tailor/Conv."""
    return any(name == island or name.startswith(island + "/") for island in islands)


def islands_of(model: bytes, islands: Sequence[str]) -> tuple[str, ...]:
    """Those of a method's islands that this graph has: one that gives no map has nothing of what smooths it."""
    names = [node.name for node in onnx.load_model_from_string(model).graph.node]
    return tuple(island for island in islands if any(in_island(name, (island,)) for name in names))


def _fold_constants(proto: onnx.ModelProto) -> None:
    """What depends on no input becomes an initializer, computed in FP32: so its range is checked like a weight's."""
    graph = proto.graph
    known, kept = {tensor.name: tensor for tensor in graph.initializer}, []
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        constant = node.op_type == "Constant" or (
            node.input and all(i in known for i in node.input if i)
        )
        if not constant or outputs.intersection(node.output):
            kept.append(node)
            continue
        inputs, results = (
            [known[i] for i in node.input if i],
            [onnx.ValueInfoProto(name=o) for o in node.output if o],
        )
        alone = helper.make_model(
            helper.make_graph([node], "constant", [], results, inputs),
            opset_imports=proto.opset_import,
        )
        for result, value in zip(results, ReferenceEvaluator(alone).run(None, {}), strict=True):
            known[result.name] = numpy_helper.from_array(np.asarray(value), result.name)
    used = {name for node in kept for name in node.input} | outputs
    _replace(graph.node, kept)
    _replace(graph.initializer, [tensor for name, tensor in known.items() if name in used])


def _replace(field: Any, content: Iterable[Any]) -> None:
    content = list(content)
    del field[:]
    field.extend(content)


class _Writer:
    """Walks the nodes in their order; `half` holds the values that are FP16 by now."""

    def __init__(self, proto: onnx.ModelProto, islands: Sequence[str]) -> None:
        self.graph, self.islands = proto.graph, islands
        self.opset = {entry.domain: entry.version for entry in proto.opset_import}
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True).graph
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        self.types = {v.name: v.type.tensor_type.elem_type for v in values}
        self.types.update((t.name, t.data_type) for t in self.graph.initializer)
        self.weights = {t.name: t for t in self.graph.initializer}
        self.outputs = {v.name for v in self.graph.output}
        self.half: set[str] = set()
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def write(self) -> None:
        for node in list(self.graph.node):
            kind = self._kind(node)
            formals = self._schema(node).inputs
            for i, name in enumerate(node.input):
                if self.types.get(name) == FLOAT:
                    allowed = (
                        "tensor(float16)" in formals[min(i, len(formals) - 1)].types
                    )  # not in Resize's scales
                    node.input[i] = self._as(name, kind if allowed else FLOAT, node)
            self.nodes.append(node)
            if kind == HALF:
                self._make_half(node)
        used = {name for node in self.nodes for name in node.input} | self.outputs
        _replace(self.graph.node, self.nodes)
        _replace(self.graph.initializer, [t for name, t in self.weights.items() if name in used])

    def _schema(self, node: onnx.NodeProto) -> Any:
        return onnx.defs.get_schema(node.op_type, self.opset[node.domain], node.domain)

    def _kind(self, node: onnx.NodeProto) -> int:
        """HALF or FLOAT: what the node computes in."""
        floats = [name for name in node.input if self.types.get(name) == FLOAT]
        formals = self._schema(node).outputs
        results = [i for i, name in enumerate(node.output) if self.types.get(name) == FLOAT]
        if in_island(node.name, self.islands):
            return FLOAT
        if any("tensor(float16)" not in formals[min(i, len(formals) - 1)].types for i in results):
            return FLOAT
        if not floats:
            return (
                HALF
                if node.op_type == "Cast" and self.types[node.input[0]] in EXACT_INTEGERS
                else FLOAT
            )
        if node.op_type in MOVERS:
            return (
                HALF if all(name in self.half or name in self.weights for name in floats) else FLOAT
            )
        return HALF

    def _make_half(self, node: onnx.NodeProto) -> None:
        """Type the outputs of a node that was just appended; an output of the graph goes back to FP32."""
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = HALF
        for i, name in enumerate(node.output):
            if self.types.get(name) != FLOAT:
                continue
            if name in self.outputs:
                node.output[i] = self.casts[name, HALF] = name + SUFFIX[HALF]
                self.half.add(node.output[i])
                self._cast(node.output[i], name, FLOAT)
            else:
                self.half.add(name)

    def _as(self, name: str, kind: int, user: onnx.NodeProto) -> str:
        """The name under which a value is there in the wanted type; a Cast, or a second weight, is made once."""
        if kind == (HALF if name in self.half else FLOAT):
            return name
        if (name, kind) not in self.casts:
            other = self.casts[name, kind] = name + SUFFIX[kind]
            if name in self.weights:
                self.weights[other] = _half_weight(self.weights[name], other, user)
            else:
                self._cast(name, other, kind)
        return self.casts[name, kind]

    def _cast(self, source: str, target: str, kind: int) -> None:
        """The node's name begins in no module, so that no island claims it."""
        name = f"/to{SUFFIX[kind]}/{source.removeprefix('/')}"
        self.nodes.append(helper.make_node("Cast", [source], [target], name, to=kind))


def _half_weight(tensor: onnx.TensorProto, name: str, user: onnx.NodeProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore", under="ignore"):
        rounded = values.astype(np.float16)
    exact, finite = (
        values.astype(np.float64),
        np.isfinite(values),
    )  # an infinity that was meant stays one
    remedy = f"declare {user.name.rpartition('/')[0] or user.name} in the method's fp32_islands"
    if not np.isfinite(rounded[finite]).all():
        raise ExportError(
            f"{tensor.name} holds {np.abs(exact[finite]).max():.4g}, FP16 ends at 65504; {remedy}"
        )
    lost = np.linalg.norm(rounded[finite] - exact[finite])
    if lost > WEIGHT_ERROR * np.linalg.norm(exact[finite]):
        raise ExportError(
            f"{tensor.name} is too small for FP16 (largest {np.abs(exact[finite]).max():.4g}); {remedy}"
        )
    return numpy_helper.from_array(rounded, name)
