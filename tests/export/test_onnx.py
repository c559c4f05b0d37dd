"""The exported ONNX file: its signature, its nodes, and its results in ONNX Runtime."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx
from builders import random_images, small_simplenet
from sample_graphs import SIMPLENET_ISLANDS, graph, simplenet_graph

from flawline.export.graphs.edit import islands_in
from flawline.export.graphs.to_onnx import IR_VERSION, node_types, onnx_from_module
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime
from flawline.runtime.precisions import islands_of
from flawline.train.blocks.fused import fp32_islands
from flawline.train.blocks.tracing import OPSET

pytestmark = pytest.mark.torch
# The operators of SimpleNet's graph. A new kind of node is a decision, not an accident.
SIMPLENET_NODES = {
    "Add", "Cast", "Conv", "Constant", "LeakyRelu", "MatMul", "MaxPool", "ReduceMax", "Relu",
    "Resize", "Squeeze", "Sub", "Transpose",
}  # fmt: skip


def described(value: onnx.ValueInfoProto) -> tuple[str, int, list[Any]]:
    """Name, element type and dimensions of an input or output."""
    tensor = value.type.tensor_type
    shape = [d.dim_param or d.dim_value for d in tensor.shape.dim]
    return value.name, tensor.elem_type, shape


def test_the_graph_has_the_one_signature_and_no_warning_is_printed() -> None:
    method = small_simplenet()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = onnx_from_module(method.fused(), method.geometry)
    model = onnx.load_model_from_string(data)
    assert model.ir_version == IR_VERSION == 8
    assert [o.version for o in model.opset_import if o.domain == ""] == [OPSET] == [17]
    assert [described(value) for value in model.graph.input] == [
        ("image", onnx.TensorProto.UINT8, ["N", 64, 64, 3])
    ]
    assert [described(value) for value in model.graph.output] == [
        ("score", onnx.TensorProto.FLOAT, ["N"]),
        ("map", onnx.TensorProto.FLOAT, ["N", 64, 64]),
    ]
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_a_graph_of_the_score_alone_takes_one_batch_size_and_loses_the_nodes_of_the_map() -> None:
    method = small_simplenet()
    data = onnx_from_module(method.fused(), method.geometry, ("score",), batch=2)
    assert [described(value) for value in graph(data).input] == [
        ("image", onnx.TensorProto.UINT8, [2, 64, 64, 3])
    ]
    assert [described(value) for value in graph(data).output] == [
        ("score", onnx.TensorProto.FLOAT, [2])
    ]
    names = [node.name for node in graph(data).node]
    assert not any(islands_of(name, ["/smooth"]) for name in names)
    whole = [node.name for node in graph(simplenet_graph()).node]
    assert set(names) < set(whole)


def test_the_marked_modules_are_the_islands_of_the_graph() -> None:
    islands = fp32_islands(small_simplenet().fused())
    assert set(islands) == set(SIMPLENET_ISLANDS)
    assert islands_in(simplenet_graph(), islands) == islands


def test_the_graph_is_lean() -> None:
    method = small_simplenet(size=256, level=384, target=384)
    kinds = node_types(onnx_from_module(method.fused(), method.geometry))
    assert set(kinds) <= SIMPLENET_NODES, set(kinds) - SIMPLENET_NODES
    assert sum(kinds.values()) - kinds["Constant"] <= 75
    assert kinds["Transpose"] == 1
    assert kinds["Conv"] == 15 + 2 + 2 + 1


@pytest.mark.parametrize("size", [64, 72])
def test_onnx_runtime_agrees_with_torch_for_any_batch(size: int) -> None:
    method = small_simplenet(size=size)
    engine = OnnxRuntime(simplenet_graph(size), (size, size), threads=1)
    image = random_images(size, count=3)
    with torch.inference_mode():
        score, anomaly_map = method(image)
    for n in (1, 3):
        got_score, got_map = engine(image[:n].numpy())
        np.testing.assert_allclose(got_score, score[:n], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got_map, anomaly_map[:n], rtol=1e-4, atol=1e-4)
