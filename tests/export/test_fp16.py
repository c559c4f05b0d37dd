"""FP16 written into the graph: its types, its Casts, and what it refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx
from builders import random_images
from onnx import helper, numpy_helper
from rounding import RoundingEvaluator
from sample_graphs import (
    FLOAT,
    HALF,
    SIMPLENET_ISLANDS,
    casts,
    graph,
    graph_of,
    node,
    run_onnxruntime,
    simplenet_graph,
    types,
)

from flawline.export import ExportError
from flawline.export.graphs.to_fp16 import to_fp16
from flawline.runtime.precisions import islands_of

pytestmark = pytest.mark.torch


# ---------------------------------------------------------------- the evaluator that rounds


def test_the_rounding_evaluator_overflows_and_rounds_between_nodes() -> None:
    """300^2 is beyond FP16, and 2049 is between two values; FP32 between nodes hides both."""
    squared = [node("Mul", "x x", "s", "/a/Mul"), node("Mul", "s small", "y", "/b/Mul")]
    half = RoundingEvaluator(to_fp16(graph_of(squared, {"small": [1e-3]}), ()))(
        x=np.full((1, 4), 300, np.float32)
    )
    assert np.isinf(half["s"]).all()
    assert np.isinf(half["y"]).all()
    added = [node("Add", "x one", "s", "/a/Add"), node("Sub", "s one", "y", "/b/Sub")]
    half = RoundingEvaluator(to_fp16(graph_of(added, {"one": [1]}), ()))(
        x=np.full((1, 4), 2048, np.float32)
    )
    assert (half["y"] == 2047).all()


# ---------------------------------------------------------------- types and Casts


@pytest.mark.parametrize("size", [64, 72])
def test_every_node_is_fp16_but_the_islands(size: int) -> None:
    model = simplenet_graph(size)
    half = to_fp16(model, SIMPLENET_ISLANDS)
    before, after = onnx.load_model_from_string(model), onnx.load_model_from_string(half)
    onnx.checker.check_model(after, full_check=True)
    assert (after.ir_version, after.opset_import) == (before.ir_version, before.opset_import)
    assert (after.graph.input, after.graph.output) == (before.graph.input, before.graph.output)
    kinds = types(half)
    computing = [n for n in after.graph.node if n.op_type not in ("Cast", "Squeeze", "ReduceMax")]
    assert Counter(n.op_type for n in computing)["Conv"] == 20
    for n in computing:
        expected = FLOAT if islands_of(n.name, SIMPLENET_ISLANDS) else HALF
        floats = [
            kinds[i] for i in n.input if i and not (n.op_type == "Resize" and i == n.input[2])
        ]
        assert {kinds[n.output[0]], *floats} == {expected}, n.name
    # What only moves or selects an island's result leaves it in FP32.
    assert {
        kinds[n.output[0]] for n in after.graph.node if n.op_type in ("Squeeze", "ReduceMax")
    } == {FLOAT}
    # One Cast at the input, one where the island begins, none between the islands or at the end.
    assert casts(half) == [("image", HALF), ("/LeakyRelu_output_0", FLOAT)]
    assert not [
        n.name
        for n in after.graph.node
        if n.op_type == "Cast" and islands_of(n.name, SIMPLENET_ISLANDS)
    ]
    assert len(half) < 0.6 * len(model)


def test_without_islands_all_is_fp16_and_the_outputs_go_back_to_fp32() -> None:
    half = to_fp16(simplenet_graph(), ())
    assert casts(half) == [("image", HALF), ("score_fp16", FLOAT), ("map_fp16", FLOAT)]
    left = [t.name for t in graph(half).initializer if t.data_type == FLOAT]
    assert left == [
        n.input[2] for n in graph(half).node if n.op_type == "Resize"
    ]  # ONNX has no FP16 scales


def test_bytes_meet_a_cast_before_anything_else() -> None:
    """TensorRT takes uint8 into a Cast only."""
    model = simplenet_graph()
    for each in (model, to_fp16(model, SIMPLENET_ISLANDS)):
        assert [n.op_type for n in graph(each).node if "image" in n.input] == ["Cast"]


@pytest.mark.parametrize(
    "islands", [(), SIMPLENET_ISLANDS, ("/heads.0", "/backbone/layer1", "/input", "/Add")]
)
def test_fp16_scores_as_fp32_does_for_any_batch(islands: tuple[str, ...]) -> None:
    model = simplenet_graph(72)
    half = to_fp16(model, islands)
    image = random_images(72, count=3)
    for n in (1, 3):
        expected, got = run_onnxruntime(model, image[:n]), run_onnxruntime(half, image[:n])
        rounded = RoundingEvaluator(half)(image=image[:n].numpy())
        for i, name in enumerate(("score", "map")):
            assert got[i].dtype == rounded[name].dtype == np.float32
            assert got[i].shape == expected[i].shape
            np.testing.assert_allclose(got[i], expected[i], rtol=0.01, atol=0.01)
            np.testing.assert_allclose(rounded[name], expected[i], rtol=0.01, atol=0.01)
            assert np.abs(rounded[name] - expected[i]).max() > 1e-6  # it did round


def test_a_value_is_cast_once_and_never_back_and_forth() -> None:
    """x -> FP16 a -> island i, used by two FP16 nodes, a Squeeze and a second island."""
    nodes = [
        node("Mul", "x w", "a", "/a/Mul"),
        node("Mul", "a w", "i", "/i/Mul"),
        node("Add", "i w", "b", "/b/Add"),
        node("Sub", "i w", "c", "/c/Sub"),
        node("Mul", "b c", "d", "/d/Mul"),
        node("Unsqueeze", "i axes", "u", "/Unsqueeze"),
        node("Squeeze", "u axes", "s", "/Squeeze"),
        node("Concat", "s d", "k", "/Concat", axis=1),
        node("ReduceSum", "k", "y", "/j/ReduceSum", keepdims=0),
    ]
    half = to_fp16(graph_of(nodes, {"w": [2], "axes": np.array([0])}), ["/i", "/j"])
    assert casts(half) == [("x", HALF), ("a", FLOAT), ("i", HALF), ("d", FLOAT)]
    kinds = types(half)
    assert [kinds[name] for name in "aibcdusky"] == [
        HALF,
        FLOAT,
        HALF,
        HALF,
        HALF,
        FLOAT,
        FLOAT,
        FLOAT,
        FLOAT,
    ]
    # A weight that is used in both types exists twice, under two names.
    assert {t.name: t.data_type for t in graph(half).initializer if t.name.startswith("w")} == {
        "w": FLOAT,
        "w_fp16": HALF,
    }
    assert RoundingEvaluator(half)(x=np.ones((1, 4), np.float32))["y"] == 4 * 4 + 4 * (6 * 2)


def test_an_output_that_is_used_again_is_cast_once() -> None:
    nodes = [
        node("Mul", "x w", "y", "/a/Mul"),
        node("Mul", "y w", "z", "/b/Mul"),
        node("Mul", "y w", "v", "/c/Mul"),
    ]
    half = to_fp16(graph_of(nodes, {"w": [2]}, outputs=["y", "z", "v"]), ["/c"])
    assert casts(half) == [("x", HALF), ("y_fp16", FLOAT), ("z_fp16", FLOAT)]
    values = RoundingEvaluator(half)(x=np.ones((1, 4), np.float32))
    assert [values[name].flat[0] for name in "yzv"] == [2, 4, 4]


def test_wider_integers_are_not_counted_in_fp16() -> None:
    """2049, a number of pixels say, is cast to FP32, since FP16 would make 2048 of it."""
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], "/Shape"),
        node("Cast", "n", "f", "/Cast", to=FLOAT),
        node("ReduceMax", "f", "y", "/ReduceMax", keepdims=0),
    ]
    values = RoundingEvaluator(to_fp16(graph_of(nodes, {}), ()))(x=np.zeros((2049, 4), np.float32))
    assert values["y"] == 2049


@pytest.mark.parametrize("island", ["/tai", "tail", "/tail/Convolution", "/"])
def test_an_island_that_is_not_there_is_refused(island: str) -> None:
    with pytest.raises(ExportError, match=f"FP32 island '{island}' matches no node"):
        to_fp16(simplenet_graph(), ["/tail", island])


def test_a_graph_that_branches_is_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32(1)))],
        "branch",
        [],
        [helper.make_tensor_value_info("c", FLOAT, None)],
    )
    either = helper.make_node(
        "If", ["condition"], ["y"], "/If", then_branch=branch, else_branch=branch
    )
    model = graph_of([either], {"condition": np.array(True)})
    with pytest.raises(ExportError, match="branches or loops"):
        to_fp16(model, ())


# ---------------------------------------------------------------- weights


def scaled(weight: Any, island: Sequence[str] = ()) -> bytes:
    return to_fp16(graph_of([node("Mul", "x w", "y", "/part/scale/Mul")], {"w": weight}), island)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (
            [1, -7e4, 0, 0],
            r"w holds 7e\+04, FP16 ends at 65504; mark /part/scale with fp32\(\)",
        ),
        (1e-12, r"w is too small for FP16 \(largest 1e-12\); mark /part/scale with"),
        ([2e-8, 0, 1e-8, 0], r"w is too small for FP16"),
        ([1e-6, 0, 0, 0], r"w is too small for FP16"),
    ],
)
def test_weights_that_fp16_cannot_hold_are_refused_outside_of_islands(
    weight: Any, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        scaled(weight)
    tensor = graph(scaled(weight, ["/part/scale"])).initializer[0]
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), np.float32(weight))


@pytest.mark.parametrize("weight", [65504, [1, 1e-9, 0, 0], 0, [np.inf, 1, -np.inf, 1], 1e-5])
def test_weights_that_fp16_holds_pass(weight: Any) -> None:
    tensor = graph(scaled(weight)).initializer[0]
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), np.asarray(weight, np.float16))


def test_constants_are_weights_in_every_form() -> None:
    """A bound of 1e6 would be infinite in FP16; an Identity of a weight hides no rounding."""
    million = helper.make_node("Constant", [], ["c"], "/Constant", value_float=1e6)
    nodes = [
        million,
        node("Identity", "c", "bound", "/Identity"),
        node("Abs", "x", "a", "/Abs"),
        node("Min", "a bound", "y", "/clamp/Min"),
    ]
    with pytest.raises(ExportError, match=r"bound holds 1e\+06.*mark /clamp with"):
        to_fp16(graph_of(nodes, {}), ())
    tied = [node("Identity", "w", "v", "/Identity"), node("Mul", "x v", "y", "/i/Mul")]
    half = to_fp16(graph_of(tied, {"w": [1 + 2**-20]}), ["/i"])
    assert RoundingEvaluator(half)(x=np.ones((1, 4), np.float32))["y"].flat[0] == np.float32(
        1 + 2**-20
    )
