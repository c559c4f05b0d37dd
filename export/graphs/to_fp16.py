"""An FP32 graph converted to FP16, as strongly typed engines execute it without changes.

TensorRT 11 and TensorRT-RTX compute every node in the type that the graph gives it. Operations that
FP16 would break must therefore be FP32 in the graph: squares beyond 65504, products of
exponentials, sums over thousands of terms. A method marks the modules that contain such
operations; they are the graph's FP32 islands. Everything else becomes FP16, weights included. A
Cast stands only where the type changes, and each value is cast once.

The available tools (onnxconverter-common, ModelOpt's autocast) break an island: they cast an
island's FP32 result to FP16 at the next Squeeze or ReduceMax and back to FP32 for the next island;
the precision is lost in between. Both accept an island that does not exist, and replace a weight
that underflows by the smallest value they know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from flawline.export import ExportError
from flawline.export.graphs import GraphContext
from flawline.export.graphs.edit import (
    element_types,
    fold_constants,
    has_island,
    initializers,
    output_names,
    replace_content,
)
from flawline.runtime.precisions import islands_of

FLOAT = TensorProto.FLOAT
HALF = TensorProto.FLOAT16
SUFFIX: dict[int, str] = {FLOAT: "_fp32", HALF: "_fp16"}
# Types whose every value FP16 represents exactly; in wider integers, 2049 is the first that it does
# not. A byte minus a rounded mean is exact up to 128, since both are multiples of 1/16. Rounding
# the mean therefore shifts all grey levels by the same amount, where rounding an FP32 difference
# would shift each by its own, which measures worse.
EXACT_INTEGERS = {TensorProto.BOOL, TensorProto.INT8, TensorProto.UINT8}
# Operators that move or select values and compute none. They stay in FP32 when their input is: a
# cast to FP16 there would lose the precision of an island before the next island.
MOVERS = {
    "ArgMax", "ArgMin", "Cast", "Clip", "Concat", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Identity", "Max", "Min", "Pad", "ReduceMax", "ReduceMin",
    "Reshape", "Slice", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
# Largest relative L2 error of a rounded weight. Rounding to FP16 alone costs 0.0005. A larger error
# comes from values below FP16's normal range (6e-5), which lose digits or vanish. Single values
# may: they are negligible within their tensor.
WEIGHT_ERROR = 0.01


def write(fp32: bytes, context: GraphContext) -> bytes:
    """Write the FP16 graph of a bundle from its FP32 graph. Raises ExportError."""
    return to_fp16(fp32, context.fp32_islands)


def to_fp16(model: bytes, islands: Sequence[str]) -> bytes:
    """Convert a serialised FP32 graph to FP16. Inputs and outputs keep their types.

    Nodes of `islands` (see `islands_of`) stay FP32. Raises ExportError for an island without a
    node, for a weight outside of the islands that FP16 cannot hold, and for a graph with branches.
    """
    proto = onnx.load_model_from_string(model)
    _refuse_branches(proto.graph)
    fold_constants(proto)
    for island in islands:
        if not has_island(proto.graph, island):
            raise ExportError(
                f"FP32 island {island!r} matches no node of the graph; correct the fp32() marks of "
                f"the method (an island is a module path such as /smooth, or the name of a node)"
            )
    # The recorded types of intermediate values would be wrong from here on.
    del proto.graph.value_info[:]
    _HalfWriter(proto, islands).write()
    # Infers all types and shapes again, strictly.
    onnx.checker.check_model(proto, full_check=True)
    serialised: bytes = proto.SerializeToString()
    return serialised


def _refuse_branches(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                raise ExportError(
                    f"node {node.name} branches or loops, which cannot be converted to FP16; "
                    f"export a module without control flow"
                )


class _HalfWriter:
    """Converts a graph node by node, in their order; `half` names the values in FP16 so far."""

    def __init__(self, model: onnx.ModelProto, islands: Sequence[str]) -> None:
        self.graph = model.graph
        self.islands = islands
        self.opset: dict[str, int] = {}
        for entry in model.opset_import:
            self.opset[entry.domain] = entry.version
        self.types = element_types(model)
        self.weights = initializers(model.graph)
        self.outputs = output_names(model.graph)
        self.half: set[str] = set()
        # (value, type) -> the name under which the value exists in that type
        self.converted: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def write(self) -> None:
        # Nodes are sorted topologically: the types of all inputs are known.
        for node in list(self.graph.node):
            precision = self._precision(node)
            self._convert_inputs(node, precision)
            self.nodes.append(node)
            if precision == HALF:
                self._make_outputs_half(node)
        replace_content(self.graph, self.nodes, self.weights.values())

    def _schema(self, node: onnx.NodeProto) -> Any:
        return onnx.defs.get_schema(node.op_type, self.opset[node.domain], node.domain)

    def _precision(self, node: onnx.NodeProto) -> int:
        """Return the type that the node computes in: HALF or FLOAT."""
        if islands_of(node.name, self.islands):
            return FLOAT
        formals = self._schema(node).outputs
        for position, name in enumerate(node.output):
            if self.types.get(name) == FLOAT and not _accepts_half(formals, position):
                return FLOAT
        inputs = []
        for name in node.input:
            if self.types.get(name) == FLOAT:
                inputs.append(name)
        if not inputs:
            return self._precision_of_source(node)
        if node.op_type in MOVERS and not self._are_half_or_weights(inputs):
            return FLOAT
        return HALF

    def _precision_of_source(self, node: onnx.NodeProto) -> int:
        """Return the precision of a node without floating inputs: a Cast of exact integers."""
        if node.op_type == "Cast" and self.types[node.input[0]] in EXACT_INTEGERS:
            return HALF
        return FLOAT

    def _are_half_or_weights(self, names: Sequence[str]) -> bool:
        return all(name in self.half or name in self.weights for name in names)

    def _convert_inputs(self, node: onnx.NodeProto, precision: int) -> None:
        formals = self._schema(node).inputs
        for position, name in enumerate(node.input):
            if self.types.get(name) != FLOAT:
                continue
            # The scales of a Resize, for example, are FP32 for images of every type.
            wanted = precision if _accepts_half(formals, position) else FLOAT
            node.input[position] = self._converted(name, wanted, node)

    def _make_outputs_half(self, node: onnx.NodeProto) -> None:
        """Note the types of the outputs of a new node; an output of the graph is cast to FP32."""
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = HALF
        for position, name in enumerate(node.output):
            if self.types.get(name) != FLOAT:
                continue
            if name not in self.outputs:
                self.half.add(name)
                continue
            # The output keeps its name and type, so that the node itself writes to another name.
            half_name = name + SUFFIX[HALF]
            node.output[position] = half_name
            self.converted[name, HALF] = half_name
            self.half.add(half_name)
            self._cast(half_name, name, FLOAT)

    def _converted(self, name: str, wanted: int, user: onnx.NodeProto) -> str:
        """Return the name of a value in the wanted type; makes the Cast or the weight once."""
        present = HALF if name in self.half else FLOAT
        if wanted == present:
            return name
        if (name, wanted) not in self.converted:
            other = name + SUFFIX[wanted]
            self.converted[name, wanted] = other
            if name in self.weights:
                self.weights[other] = _half_weight(self.weights[name], other, user)
            else:
                self._cast(name, other, wanted)
        return self.converted[name, wanted]

    def _cast(self, source: str, target: str, wanted: int) -> None:
        # Name the cast outside every module path, so that no FP32 island matches it.
        name = f"/to{SUFFIX[wanted]}/{source.removeprefix('/')}"
        self.nodes.append(helper.make_node("Cast", [source], [target], name, to=wanted))


def _accepts_half(formals: Sequence[Any], position: int) -> bool:
    """Return whether an operator's schema allows FP16 at a position; its last entry may repeat."""
    formal = formals[min(position, len(formals) - 1)]
    return "tensor(float16)" in formal.types


def _half_weight(tensor: onnx.TensorProto, name: str, user: onnx.NodeProto) -> onnx.TensorProto:
    """Round a weight to FP16. Raises ExportError if it overflows or loses too much precision."""
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore", under="ignore"):
        rounded = values.astype(np.float16)
    # An infinity on purpose, such as that of a mask, stays one.
    finite = np.isfinite(values)
    exact = values.astype(np.float64)[finite]
    module = user.name.rpartition("/")[0] or user.name
    remedy = f"mark {module} with fp32() in the method"
    if not np.isfinite(rounded[finite]).all():
        largest = np.abs(exact).max()
        raise ExportError(f"{tensor.name} holds {largest:.4g}, FP16 ends at 65504; {remedy}")
    lost = np.linalg.norm(rounded[finite] - exact)
    if lost > WEIGHT_ERROR * np.linalg.norm(exact):
        largest = np.abs(exact).max()
        raise ExportError(f"{tensor.name} is too small for FP16 (largest {largest:.4g}); {remedy}")
    return numpy_helper.from_array(rounded, name)
