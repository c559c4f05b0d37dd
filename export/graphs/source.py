"""Graphs that take a camera's frames: the preparation of images in front of an FP32 graph."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from flawline.export import ExportError
from flawline.export.graphs.prologue import INPUT, PROLOGUE, TO_PLANES, Prologue
from flawline.runtime.image import Geometry
from flawline.runtime.source_frame import SourceFrame


@dataclass(frozen=True)
class SourceGraph:
    """A serialised graph that takes frames, and what was put in front of it.

    `macs` are the multiply-accumulates of the prologue for one frame; a pixel that is averaged
    counts as one.
    """

    model: bytes
    nodes: int
    macs: int


def with_source(model: bytes, source: SourceFrame, geometry: Geometry) -> SourceGraph:
    """Put the prologue for a camera's frames in front of a serialised FP32 graph.

    The input `image`, uint8 [N, H, W, 3] BGR, becomes uint8 [N, *source.shape]. Raises ExportError
    for a graph that does not begin by converting its image to float.
    """
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    prologue = Prologue(source)
    planes = prologue.prepare(geometry)
    graph.input[0].CopyFrom(_frame_input(graph.input[0], source))
    remaining = _joined(graph, planes)
    nodes = [*prologue.nodes, *remaining]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(prologue.tensors)
    del graph.value_info[:]
    onnx.checker.check_model(proto, full_check=True)
    count = sum(1 for node in nodes if node.name.startswith(PROLOGUE))
    return SourceGraph(proto.SerializeToString(), count, prologue.macs)


def _frame_input(image: onnx.ValueInfoProto, source: SourceFrame) -> onnx.ValueInfoProto:
    """Return the declaration of the input, with the batch of the image that it replaces."""
    batch = image.type.tensor_type.shape.dim[0]
    shape = [batch.dim_param or batch.dim_value, *source.shape]
    return helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape)


def _joined(graph: onnx.GraphProto, planes: str) -> list[onnx.NodeProto]:
    """Return the nodes of a graph, which read the prologue's planes [N, 3, H, W] now.

    Its conversion of the image to float, and to planes, is left out.
    """
    converted = set()
    for node in graph.node:
        if INPUT not in node.input:
            continue
        if node.op_type != "Cast" or node.attribute[0].i != TensorProto.FLOAT:
            raise ExportError(
                f"node {node.name} reads the image as it is, and not as floats; "
                f"build the bundle without --source"
            )
        converted.add(node.output[0])
    renamed: dict[str, str] = {}
    remaining: list[onnx.NodeProto] = []
    for node in graph.node:
        if INPUT in node.input:
            continue
        to_planes = node.op_type == "Transpose" and list(node.attribute[0].ints) == TO_PLANES
        if to_planes and node.input[0] in converted:
            renamed[node.output[0]] = planes
            continue
        remaining.append(node)
    # What reads the floats in another order than planes.
    for name in sorted(converted):
        if any(name in node.input for node in remaining):
            back = helper.make_node(
                "Transpose", [planes], [name], f"{PROLOGUE}/{name}", perm=[0, 2, 3, 1]
            )
            remaining.insert(0, back)
    for node in remaining:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
    return remaining
