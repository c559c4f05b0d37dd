"""Measuring tools of the benchmarks: timing in turns, counted costs, profiled nodes, sessions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import random_images
from foreign_models import write_convolution
from small_networks import small_network

from flawline.benchmarks.measure.external import external_calls
from flawline.benchmarks.measure.meter import count_parameters, measure_cost
from flawline.benchmarks.measure.nodes import bytes_written, profile_nodes
from flawline.benchmarks.measure.sessions import inference_call
from flawline.benchmarks.measure.timing import alternate, percentiles
from flawline.benchmarks.studies.fusion.rows import ONNX_RUNTIME
from flawline.export.graphs.to_onnx import onnx_from_module
from flawline.runtime.engines import EngineError

pytestmark = pytest.mark.torch


def test_percentiles_of_known_times() -> None:
    result = percentiles([1.0] * 98 + [3.0, 5.0])
    assert result["p50_ms"] == 1.0
    assert result["fps"] == 1000.0
    assert 1.0 <= result["p95_ms"] <= result["p99_ms"] <= 5.0


def test_calls_take_turns() -> None:
    order: list[str] = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    medians = alternate(calls, rounds=2, repeats=2)
    # One call of each to warm up, then the turns.
    assert "".join(order) == "ab" + "aabb" * 2
    assert medians.keys() == {"a", "b"}


def test_a_turn_may_begin_with_untimed_calls() -> None:
    order: list[str] = []
    alternate({"a": lambda: order.append("a")}, rounds=1, repeats=1, settle_s=0.005)
    assert len(order) > 2


def test_the_meter_counts_what_is_computed_and_written() -> None:
    conv = torch.nn.Conv2d(2, 3, 3, padding=1)
    x = torch.zeros(1, 2, 4, 5)
    cost = measure_cost(lambda: conv(x).relu_().permute(0, 2, 3, 1))
    assert cost.macs == 3 * 2 * 9 * 20
    assert cost.bytes_written == 3 * 20 * 4
    product = measure_cost(lambda: (x.transpose(1, 2) @ torch.ones(5, 7)).reshape(-1))
    assert product.macs == 4 * 2 * 5 * 7
    assert count_parameters(conv) == 3 * 2 * 9 + 3


def test_the_meter_sees_the_products_of_an_attention() -> None:
    query = torch.zeros(1, 1, 6, 4)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert measure_cost(lambda: attention(query, query, query)).macs == 2 * 6 * 6 * 4


def test_the_profile_lists_the_nodes_that_ran() -> None:
    method = small_network("simplenet")
    model = onnx_from_module(method.fused(), method.geometry)
    nodes = profile_nodes(model, random_images(count=1).numpy(), 1, runs=4)
    assert {"Conv", "ReduceMax", "MatMul"} <= {node.kind for node in nodes}
    (smoothing,) = [node for node in nodes if node.name == "/smooth/MatMul_1"]
    assert smoothing.bytes_written == 4 * 64 * 64
    assert bytes_written(nodes) > smoothing.bytes_written
    assert all(node.milliseconds >= 0 for node in nodes)


def test_a_inference_call_computes_what_the_module_computes() -> None:
    method = small_network("simplenet")
    fused = method.fused()
    image = random_images()
    score, anomaly_map = inference_call(onnx_from_module(fused, method.geometry), 1)(image.numpy())
    with torch.inference_mode():
        expected = fused(image)
    np.testing.assert_allclose(score, expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(anomaly_map, expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_model_of_another_program_runs_on_values_of_its_own(
    dynamic: bool, tmp_path: Path
) -> None:
    path = write_convolution(tmp_path / "other.onnx", 64, dynamic)
    calls = external_calls(path, (64, 64), 1)
    (result,) = calls[ONNX_RUNTIME](random_images().numpy())
    assert result.shape == (1, 2, 62, 62)
    for call in calls.values():
        np.testing.assert_allclose(call(random_images(32).numpy())[0], result, atol=1e-5)


def test_the_model_of_another_program_runs_in_openvino_in_fp32(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    calls = external_calls(write_convolution(tmp_path / "other.onnx", 64), (64, 64), 1)
    assert list(calls) == [ONNX_RUNTIME, "openvino fp32"]


def test_openvino_is_left_out_with_a_note_where_it_cannot_run_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    openvino = pytest.importorskip("openvino")

    def read_model(self: object, path: Path) -> object:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(openvino.Core, "read_model", read_model)
    path = write_convolution(tmp_path / "other.onnx", 64)
    assert list(external_calls(path, (64, 64), 1)) == [ONNX_RUNTIME]
    note = f"openvino fp32 is left out: {path} cannot be timed: no such operator"
    assert note in capsys.readouterr().err


def test_a_model_that_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    wrong_size = "does not take float images of 64x64"
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    reasons = {
        write_convolution(tmp_path / "larger.onnx", 96): wrong_size,
        write_convolution(tmp_path / "open.onnx", None, dynamic=True): wrong_size,
        text: "cannot be timed",
        tmp_path / "missing.onnx": "cannot be timed",
    }
    for path, reason in reasons.items():
        with pytest.raises(EngineError, match=f"{path.name} {reason}"):
            external_calls(path, (64, 64), 1)
