"""Edits of ONNX graphs that the writers share. This module needs onnx and no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from flawline.runtime.precisions import islands_of


def has_island(graph: onnx.GraphProto, island: str) -> bool:
    """Return whether a graph has a node that belongs to this FP32 island."""
    return any(islands_of(node.name, [island]) for node in graph.node)


def islands_in(model: bytes, islands: Sequence[str]) -> tuple[str, ...]:
    """Return those of a method's FP32 islands that have a node in this graph.

    A graph without a map lacks the modules that only the map needs.
    """
    graph = onnx.load_model_from_string(model).graph
    present = []
    for island in islands:
        if has_island(graph, island):
            present.append(island)
    return tuple(present)


def output_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the outputs of a graph."""
    return {value.name for value in graph.output}


def initializers(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the initializers of a graph by their names."""
    return {tensor.name: tensor for tensor in graph.initializer}


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type (TensorProto.FLOAT and so on) of every value, by strict inference."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    types = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    for tensor in inferred.graph.initializer:
        types[tensor.name] = tensor.data_type
    return types


def replace_content(
    graph: onnx.GraphProto,
    nodes: Iterable[onnx.NodeProto],
    tensors: Iterable[onnx.TensorProto],
) -> None:
    """Replace the nodes and the initializers of a graph; unused initializers are dropped."""
    # Both may be taken from the graph itself, so they are copied before it is emptied.
    new_nodes = list(nodes)
    used = output_names(graph)
    for node in new_nodes:
        used.update(node.input)
    new_tensors = [tensor for tensor in tensors if tensor.name in used]
    del graph.node[:]
    graph.node.extend(new_nodes)
    del graph.initializer[:]
    graph.initializer.extend(new_tensors)


def constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Remove the nodes that compute nothing.

    Those are Constant, whose value becomes an initializer, and Identity of an initializer, which
    the exporter writes where two weights are equal.
    """
    tensors = initializers(graph)
    outputs = output_names(graph)
    remaining: list[onnx.NodeProto] = []
    originals: dict[str, str] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = originals.get(name, name)
        result = node.output[0]
        if result in outputs:
            remaining.append(node)
        elif node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            tensor.name = result
            tensors[result] = tensor
        elif node.op_type == "Identity" and node.input[0] in tensors:
            originals[result] = node.input[0]
        else:
            remaining.append(node)
    replace_content(graph, remaining, tensors.values())


def merge_padding(model: onnx.ModelProto) -> None:
    """Move the zeros that Pad nodes add around images into the convolutions that read them.

    A convolution of ONNX may pad each side differently, which one of torch cannot. Engines then run
    one layer less.
    """
    graph = model.graph
    if not any(node.op_type == "Pad" for node in graph.node):
        return
    # The exporter writes nodes that compute the widths.
    fold_constants(model)
    tensors = initializers(graph)
    outputs = output_names(graph)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    remaining = []
    for node in graph.node:
        pads = _image_padding(node, tensors)
        reading = readers.get(node.output[0], [])
        wanted = node.output[0] in outputs or not reading
        if pads is None or wanted or not all(_pads_zeros(other) for other in reading):
            remaining.append(node)
            continue
        for other in reading:
            _add_padding(other, pads)
            other.input[0] = node.input[0]
    replace_content(graph, remaining, tensors.values())


def _image_padding(
    node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto]
) -> list[int] | None:
    """Return the zeros that a Pad node adds: top, left, bottom, right; None for any other node."""
    if node.op_type != "Pad" or len(node.input) < 2 or node.input[1] not in tensors:
        return None
    modes = [attribute.s for attribute in node.attribute if attribute.name == "mode"]
    if modes not in ([], [b"constant"]) or len(node.input) > 3:
        return None
    if len(node.input) == 3 and node.input[2]:
        value = tensors.get(node.input[2])
        if value is None or numpy_helper.to_array(value).any():
            return None
    pads: list[int] = numpy_helper.to_array(tensors[node.input[1]]).tolist()
    # Of [N, C, H, W]: first the four begins, then the four ends.
    if len(pads) != 8 or any(pads[:2] + pads[4:6]) or min(pads) < 0:
        return None
    return pads[2:4] + pads[6:8]


def _pads_zeros(node: onnx.NodeProto) -> bool:
    """Whether a node is a convolution of images with a padding that is written down."""
    return node.op_type == "Conv" and not any(a.name == "auto_pad" for a in node.attribute)


def _add_padding(conv: onnx.NodeProto, pads: Sequence[int]) -> None:
    for attribute in conv.attribute:
        if attribute.name == "pads":
            total = [old + more for old, more in zip(attribute.ints, pads, strict=True)]
            attribute.ints[:] = total
            return
    conv.attribute.append(helper.make_attribute("pads", pads))


def fold_constants(model: onnx.ModelProto) -> None:
    """Replace every node that depends on no input of the graph by an initializer.

    The values are computed in the types that the graph has now, so that the range of a computed
    constant can be checked like that of a weight. Nodes that compute an output stay.
    """
    graph = model.graph
    tensors = initializers(graph)
    outputs = output_names(graph)
    remaining = []
    for node in graph.node:
        if not _is_constant(node, tensors) or outputs.intersection(node.output):
            remaining.append(node)
            continue
        for tensor in _evaluate(node, tensors, model.opset_import):
            tensors[tensor.name] = tensor
    replace_content(graph, remaining, tensors.values())


def _is_constant(node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto]) -> bool:
    if node.op_type == "Constant":
        return True
    inputs = set(filter(None, node.input))
    return bool(node.input) and inputs <= tensors.keys()


def _evaluate(
    node: onnx.NodeProto,
    tensors: Mapping[str, onnx.TensorProto],
    opset: Iterable[onnx.OperatorSetIdProto],
) -> list[onnx.TensorProto]:
    """Compute the outputs of a node whose inputs are all initializers."""
    inputs = [tensors[name] for name in filter(None, node.input)]
    names = list(filter(None, node.output))
    results = []
    for name in names:
        results.append(onnx.ValueInfoProto(name=name))
    graph = helper.make_graph([node], "constant", [], results, inputs)
    model = helper.make_model(graph, opset_imports=opset)
    computed = []
    for name, value in zip(names, ReferenceEvaluator(model).run(None, {}), strict=True):
        computed.append(numpy_helper.from_array(np.asarray(value), name))
    return computed


def set_output_shape(graph: onnx.GraphProto, output: str, shape: Sequence[str | int]) -> None:
    """Declare the shape of an output; a text is the name of a dynamic dimension.

    The exporter leaves a dimension symbolic where it follows a matrix product. A graph without
    this output is left as it is.
    """
    for value in graph.output:
        if value.name != output:
            continue
        dimensions = value.type.tensor_type.shape.dim
        del dimensions[:]
        for size in shape:
            if isinstance(size, str):
                dimensions.add(dim_param=size)
            else:
                dimensions.add(dim_value=size)
