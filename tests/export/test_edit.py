"""Edits of ONNX graphs that the writers share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx
from onnx import helper, numpy_helper
from sample_graphs import FLOAT, graph, graph_of, node

from flawline.export.graphs import evenly_spaced
from flawline.export.graphs.edit import (
    constants_to_initializers,
    fold_constants,
    islands_in,
    set_output_shape,
)
from flawline.runtime.precisions import islands_of

pytestmark = pytest.mark.torch


def constant(output: str, value: Any) -> onnx.NodeProto:
    tensor = numpy_helper.from_array(np.asarray(value, np.float32))
    return helper.make_node("Constant", [], [output], f"/{output}", value=tensor)


def content(model: onnx.ModelProto) -> tuple[list[str], dict[str, Any]]:
    """Names of the nodes, and values of the initializers."""
    weights = {}
    for tensor in model.graph.initializer:
        weights[tensor.name] = numpy_helper.to_array(tensor).tolist()
    return [n.name for n in model.graph.node], weights


def test_constants_and_equal_weights_become_initializers() -> None:
    nodes = [
        constant("two", [2]),
        node("Identity", "w", "same", "/Identity"),
        node("Mul", "x two", "a", "/Mul"),
        node("Add", "a same", "y", "/Add"),
    ]
    model = onnx.load_model_from_string(graph_of(nodes, {"w": [3]}))
    constants_to_initializers(model.graph)
    onnx.checker.check_model(model, full_check=True)
    assert content(model) == (["/Mul", "/Add"], {"w": [3.0], "two": [2.0]})
    assert list(model.graph.node[1].input) == ["a", "w"]


def test_a_constant_that_is_an_output_of_the_graph_stays_a_node() -> None:
    model = onnx.load_model_from_string(graph_of([constant("y", [2])], {}))
    constants_to_initializers(model.graph)
    assert content(model) == (["/y"], {})


def test_what_depends_on_no_input_is_computed() -> None:
    nodes = [
        constant("two", [2]),
        node("Mul", "two w", "six", "/Mul"),
        node("Add", "x six", "y", "/Add"),
    ]
    model = onnx.load_model_from_string(graph_of(nodes, {"w": [3]}))
    fold_constants(model)
    assert content(model) == (["/Add"], {"six": [6.0]})


def test_a_computed_constant_that_is_an_output_stays_a_node() -> None:
    nodes = [constant("two", [2]), node("Mul", "two w", "y", "/Mul")]
    model = onnx.load_model_from_string(graph_of(nodes, {"w": [3]}))
    fold_constants(model)
    assert content(model) == (["/Mul"], {"w": [3.0], "two": [2.0]})


def test_islands_are_whole_components_of_module_paths() -> None:
    assert islands_of("/tail/Conv", ["/tail"])
    assert islands_of("/backbone/layer1/layer1.0/Add", ["/smooth", "/backbone/layer1"])
    assert islands_of("/Add", ["/Add"])
    assert not islands_of("/tailor/Conv", ["/tail"])
    assert not islands_of("/Add_1", ["/Add"])
    assert not islands_of("/heads.0/Conv", ["/heads"])
    assert not islands_of("/tail/Conv", ())


def test_only_the_islands_of_a_graph_are_listed() -> None:
    model = graph_of([node("Abs", "x", "y", "/tail/Abs")], {})
    assert islands_in(model, ("/smooth", "/tail", "/tai")) == ("/tail",)


def test_the_shape_of_an_output_is_declared() -> None:
    model = graph_of([node("Abs", "x", "y", "/Abs")], {})
    changed = graph(model)
    set_output_shape(changed, "y", ["N", 4])
    set_output_shape(changed, "absent", [1])
    (value,) = changed.output
    assert value == helper.make_tensor_value_info("y", FLOAT, ["N", 4])


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [
        (0, 3, []),
        (1, 3, [0]),
        (5, 3, [0, 2, 4]),
        (5, 1, [0]),
        (3, 9, [0, 1, 2]),
        (4, 0, []),
        (10, 4, [0, 3, 6, 9]),
    ],
)
def test_evenly_spaced_items(length: int, count: int, expected: list[int]) -> None:
    assert evenly_spaced(range(length), count) == expected
