"""Small graphs and detectors for the tests of the export, and questions to ask of graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from builders import small_simplenet
from onnx import TensorProto, helper, numpy_helper

from flawline.export.graphs.edit import element_types
from flawline.export.graphs.to_onnx import onnx_from_module

FLOAT, HALF, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8
SIMPLENET_ISLANDS = ("/tail", "/smooth")


def simplenet_graph(size: int = 64) -> bytes:
    method = small_simplenet(size=size)
    return onnx_from_module(method.fused(), method.geometry)


def graph_of(
    nodes: list[onnx.NodeProto], weights: dict[str, Any], outputs: Sequence[str] = ("y",)
) -> bytes:
    """A graph x float32 [N, 4] -> outputs. Weights are float32 unless they are arrays."""
    tensors = []
    for name, value in weights.items():
        array = value if isinstance(value, np.ndarray) else np.asarray(value, np.float32)
        tensors.append(numpy_helper.from_array(array, name))
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def node(kind: str, inputs: str, output: str, name: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name, **attributes)


def graph(model: bytes) -> onnx.GraphProto:
    return onnx.load_model_from_string(model).graph


def types(model: bytes) -> dict[str, int]:
    """Element type of every value, weights included."""
    return element_types(onnx.load_model_from_string(model))


def casts(model: bytes) -> list[tuple[str, int]]:
    """Input and target type of every Cast."""
    return [(n.input[0], n.attribute[0].i) for n in graph(model).node if n.op_type == "Cast"]


def run_onnxruntime(model: bytes, image: Any) -> list[Any]:
    """Score [N] and map [N, H, W] of images."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, ["CPUExecutionProvider"])
    return list(session.run(None, {"image": np.asarray(image)}))
