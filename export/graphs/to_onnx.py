"""A fused torch module as a portable ONNX file: opset 17, IR 8, one graph signature, one file."""

from __future__ import annotations

from collections import Counter

import onnx
import onnx.utils
import torch
from torch import nn

from flawline.export import ExportError
from flawline.export.graphs.edit import (
    constants_to_initializers,
    merge_padding,
    set_output_shape,
)
from flawline.runtime.image import Geometry
from flawline.runtime.manifest import GRAPH_OUTPUTS
from flawline.train.blocks.tracing import trace_to_onnx
from flawline.train.method import Method

IR_VERSION = 8  # TensorRT 8.x accepts no later one


def choose_outputs(
    method: Method | type[Method], wanted: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Return the outputs of a method's graph: the wanted ones, or with None all that it has.

    Raises ExportError where the map is wanted of a method that has none.
    """
    if wanted is None:
        return method.outputs
    if not set(wanted) <= set(method.outputs):
        raise ExportError(
            f"{method.name} judges images as a whole and has no anomaly map; leave --outputs out"
        )
    return wanted


def onnx_from_module(
    module: nn.Module,
    geometry: Geometry,
    outputs: tuple[str, ...] = GRAPH_OUTPUTS,
    batch: int | None = None,
) -> bytes:
    """Serialise `image` uint8 [N, H, W, 3] BGR -> `score` float32 [N], `map` float32 [N, H, W].

    Args:
        module: maps the image to (score, map); H and W are those of `geometry`. Without the map in
            `outputs`, its second result is ignored.
        geometry: how images are prepared for the module.
        outputs: GRAPH_OUTPUTS, or ("score",) for a graph without the map.
        batch: the only N that the graph accepts; None makes N dynamic.
    """
    example = torch.zeros(batch or 1, geometry.height, geometry.width, 3, dtype=torch.uint8)
    model = trace(module, example, GRAPH_OUTPUTS, dynamic=batch is None)
    if outputs != GRAPH_OUTPUTS:
        # The extractor drops every node that only the map needed and leaves all names as they
        # are: FP32 islands refer to names.
        model = onnx.utils.Extractor(model).extract_model(["image"], list(outputs))
    constants_to_initializers(model.graph)
    merge_padding(model)
    model.ir_version = IR_VERSION
    count = batch or "N"
    set_output_shape(model.graph, "score", [count])
    set_output_shape(model.graph, "map", [count, geometry.height, geometry.width])
    onnx.checker.check_model(model, full_check=True)
    serialised: bytes = model.SerializeToString()
    return serialised


def trace(
    module: nn.Module, image: torch.Tensor, outputs: tuple[str, ...], dynamic: bool
) -> onnx.ModelProto:
    """Export a module of one input, called `image`, as a model that is not checked yet.

    `dynamic` makes the first axis of the input and of every output dynamic, with the name N.
    """
    serialised = trace_to_onnx(module, image, "image", outputs, dynamic)
    return onnx.load_model_from_string(serialised)


def node_types(model: bytes) -> Counter[str]:
    """Count the nodes of a serialised graph by operator."""
    graph = onnx.load_model_from_string(model).graph
    return Counter(node.op_type for node in graph.node)
