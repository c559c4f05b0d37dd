"""A fused module to the portable ONNX file: opset 17, IR 8, one graph signature, one file."""

from __future__ import annotations

import io
import warnings
from collections import Counter

import onnx
import onnx.utils
import torch
from torch import nn

from flawline.runtime.bundle import OUTPUTS
from flawline.runtime.image import Geometry

OPSET, IR_VERSION = 17, 8  # TensorRT 8.x reads no more


def onnx_from_module(
    module: nn.Module,
    geometry: Geometry,
    outputs: tuple[str, ...] = OUTPUTS,
    batch: int | None = None,
) -> bytes:
    """Serialise `image` uint8 [N, H, W, 3] -> `score` [N], `map` [N, H, W]. N is dynamic, or `batch` and no other.

    `outputs` is OUTPUTS or ("score",).
    """
    example = torch.zeros(batch or 1, geometry.height, geometry.width, 3, dtype=torch.uint8)
    model = trace(module, example, OUTPUTS, dynamic=batch is None)
    if outputs != OUTPUTS:
        # Also drops every node that only the map needed. The names of the rest stay: FP32 islands go by them.
        model = onnx.utils.Extractor(model).extract_model(["image"], list(outputs))
    _constants_are_initializers(model.graph)
    model.ir_version = IR_VERSION
    _set_shape(model, "score", batch or "N")
    _set_shape(model, "map", batch or "N", geometry.height, geometry.width)
    onnx.checker.check_model(model, full_check=True)
    serialised: bytes = model.SerializeToString()
    return serialised


def trace(
    module: nn.Module, image: torch.Tensor, outputs: tuple[str, ...], dynamic: bool
) -> onnx.ModelProto:
    """Any module of one input `image`, whose first axis is N where `dynamic`, as an unchecked model.

    The TorchScript exporter is used on purpose: it writes opset 17 as asked, where the newer one writes 18 and
    converts down with errors. Its deprecation notice is the only warning silenced.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.onnx.export(
            module,
            (image,),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(outputs),
            dynamic_axes={name: {0: "N"} for name in ("image", *outputs)} if dynamic else None,
        )
    return onnx.load_model_from_string(buffer.getvalue())


def _constants_are_initializers(graph: onnx.GraphProto) -> None:
    """Drop the nodes that compute nothing: Constant, and the Identity that the exporter writes for a weight that
    another one equals."""
    known = {tensor.name: tensor for tensor in graph.initializer}
    outputs, kept = {value.name for value in graph.output}, []
    same: dict[str, str] = {}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = same.get(name, name)
        result = node.output[0]
        if (
            node.op_type == "Constant"
            and node.attribute[0].name == "value"
            and result not in outputs
        ):
            known[result] = node.attribute[0].t
            known[result].name = result
        elif node.op_type == "Identity" and node.input[0] in known and result not in outputs:
            same[result] = node.input[0]
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensor for name, tensor in known.items() if name in used)


def _set_shape(model: onnx.ModelProto, output: str, *dims: str | int) -> None:
    """Write the known shape of an output, which the exporter leaves symbolic behind a matrix product."""
    for value in model.graph.output:
        if value.name == output:
            del value.type.tensor_type.shape.dim[:]
            for dim in dims:
                entry = value.type.tensor_type.shape.dim.add()
                if isinstance(dim, str):
                    entry.dim_param = dim
                else:
                    entry.dim_value = dim


def node_types(model: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_model_from_string(model).graph.node)
