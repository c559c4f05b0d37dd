"""Results of an engine that are not numbers reject their part: NaN in the map, or in the score."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import SIZE, write_tiny_bundle

from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.verdict import LOWEST, fault_of

# Places of a single NaN in a map, of which engines compare several parts at once.
PLACES = [(0, 0), (0, 1), (7, 13), (SIZE - 1, 0), (SIZE - 1, SIZE - 1)]
IN_MAP = "the anomaly map has values that are not finite numbers: the part is rejected"


def graph_with_roots() -> bytes:
    """The tiny graph, whose map is computed by square roots: NaN where a pixel is black."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[3], keepdims=0),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Sub", ["mean", "half"], ["above"]),
        helper.make_node("Sqrt", ["above"], ["root"]),
        helper.make_node("Mul", ["root", "root"], ["square"]),
        helper.make_node("Add", ["square", "half"], ["map"]),
        helper.make_node("ReduceMax", ["map"], ["score"], axes=[1, 2], keepdims=0),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])
    anomaly_map = helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", SIZE, SIZE])
    graph = helper.make_graph(nodes, "roots", [image], [score, anomaly_map])
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that passes its self-test, since no golden image has a black pixel."""
    pytest.importorskip("onnx", reason="needs the train extra")
    return write_tiny_bundle(tmp_path_factory.mktemp("fragile") / "bundle", graph_with_roots())


def image(place: tuple[int, int] | None = None) -> np.ndarray:
    """A dark image, which is good, with one black pixel."""
    pixels = np.full((SIZE, SIZE, 3), 20, np.uint8)
    if place is not None:
        pixels[place] = 0
    return pixels


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_nan_in_one_cell_of_the_map_rejects_the_part(engine: str, fragile: Bundle) -> None:
    pytest.importorskip(engine)
    with Detector(fragile, engine) as detector:
        assert detector(image()).name == "good"
        for place in PLACES:
            verdict = detector(image(place))
            assert (verdict.name, verdict.anomalous) == ("unjudged", True), place
            assert "the part is rejected" in str(verdict.reason)
        # The next part is judged.
        assert detector(image()).name == "good"


def test_the_stream_rejects_the_part_with_its_reason(
    fragile: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for name, place in (("0", None), ("1", (7, 13)), ("2", None)):
        cv2.imwrite(str(parts / f"{name}.png"), image(place))
    words = ["--bundle", str(fragile.path), "--camera", str(parts), "--engine", "onnxruntime"]
    assert infer_stream.main([*words, "--save", str(tmp_path / "saved")]) == 0
    captured = capsys.readouterr()
    *lines, end = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["verdict"] for line in lines] == ["good", "unjudged", "good"]
    assert [line["rejected"] for line in lines] == [False, True, False]
    assert lines[1]["score"] is None
    assert lines[1]["reason"] == IN_MAP
    assert "NaN" not in captured.out
    assert f"frame 1 of {parts}/1.png was not judged, and its part rejected: {IN_MAP}" in (
        captured.err
    )
    assert end["summary"]["unjudged"] == 1
    assert len(list((tmp_path / "saved").glob("*-unjudged.png"))) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_result_is_a_number_everywhere(value: float) -> None:
    numbers = np.zeros((4, 4), np.float32)
    assert fault_of(5.0, numbers) is None
    assert fault_of(5.0, np.empty((0, 0), np.float32)) is None
    odd = numbers.copy()
    odd[2, 1] = value
    assert fault_of(5.0, odd) == IN_MAP
    assert "not a finite number: the part is rejected" in str(fault_of(value, numbers))


def test_a_maximum_of_no_number_is_no_score() -> None:
    assert "not a finite number" in str(fault_of(LOWEST, np.empty((0, 0), np.float32)))
    assert fault_of(-1e30, np.empty((0, 0), np.float32)) is None
