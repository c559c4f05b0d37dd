"""INT8 graphs: what is quantized, how, and what it does to scores."""

from __future__ import annotations

import math
import platform
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the train extra")

from onnx import TensorProto, helper, numpy_helper

from flawline.export import ExportError
from flawline.export.graphs import GraphContext
from flawline.export.graphs import to_int8 as module
from flawline.export.graphs.prologue import PROLOGUE
from flawline.export.graphs.source import with_source
from flawline.export.graphs.to_int8 import describe_int8, to_int8, write
from flawline.runtime.bundle import Bundle, write_bundle
from flawline.runtime.engines import EngineOptions
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime
from flawline.runtime.engines.tensorrt.library import logger
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Geometry
from flawline.runtime.source_frame import SourceFrame

SIZE = 32


def network(outlier: float = 1.0) -> bytes:
    """A residual network with a projection, in the one signature, from a seed.

    The first of the 16 channels is `outlier` times larger than the others, and its weights in the
    next layers are as much smaller: one range for all channels leaves the others few steps.
    """
    rng = np.random.default_rng(0)
    weights = {
        "stem": rng.normal(0, 0.02, (16, 3, 3, 3)),
        "left": rng.normal(0, 0.1, (16, 16, 3, 3)),
        "right": rng.normal(0, 0.1, (16, 16, 3, 3)),
        "head": rng.normal(0, 0.2, (24, 16, 1, 1)),
        "tail": rng.normal(0, 0.3, (1, 24, 1, 1)),
    }
    weights["stem"][0] *= outlier
    for name in ("left", "head"):
        weights[name][:, 0] /= outlier
    tensors = {f"{n}.weight": w.astype(np.float32) for n, w in weights.items()}
    tensors |= {
        f"{n}.bias": rng.normal(0, 0.1, len(w)).astype(np.float32) for n, w in weights.items()
    }
    tensors["mean"] = np.full((1, 3, 1, 1), 127.5, np.float32)
    tensors["blur"] = np.full((SIZE, SIZE), 1 / SIZE, np.float32)
    tensors["axis"] = np.array([1])

    def conv(name: str, source: str, pad: int) -> Any:
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        return helper.make_node("Conv", inputs, [name], f"/{name}/Conv", pads=[pad] * 4)

    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], "/input/Cast", to=TensorProto.FLOAT),
        helper.make_node(
            "Transpose", ["pixels"], ["floats"], "/input/Transpose", perm=[0, 3, 1, 2]
        ),
        helper.make_node("Sub", ["floats", "mean"], ["centred"], "/input/Sub"),
        conv("stem", "centred", 1),
        helper.make_node("Relu", ["stem"], ["skip"], "/Relu"),
        conv("left", "skip", 1),
        helper.make_node("Relu", ["left"], ["left_relu"], "/Relu_1"),
        conv("right", "left_relu", 1),
        helper.make_node("Add", ["right", "skip"], ["sum"], "/Add"),
        helper.make_node("Relu", ["sum"], ["sum_relu"], "/Relu_2"),
        conv("head", "sum_relu", 0),
        helper.make_node("Relu", ["head"], ["head_relu"], "/Relu_3"),
        conv("tail", "head_relu", 0),
        helper.make_node("Squeeze", ["tail", "axis"], ["raw"], "/Squeeze"),
        helper.make_node("ReduceMax", ["raw"], ["score"], "/ReduceMax", axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["raw", "blur"], ["map"], "/smooth/MatMul"),
    ]
    values = [
        helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3]),
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
        helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", SIZE, SIZE]),
    ]
    initializers = [numpy_helper.from_array(v, k) for k, v in tensors.items()]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def random_images(n: int = 12, seed: int = 0) -> list[Any]:
    return list(np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8))


def run(model: bytes, folder: Path, images: Any) -> tuple[Any, Any]:
    (folder / "m.onnx").write_bytes(model)
    engine = OnnxRuntime(folder / "m.onnx", (SIZE, SIZE), threads=1)
    score, anomaly_map = engine(np.stack(images))
    return score.copy(), anomaly_map.copy()


def quantized(model: bytes) -> set[str]:
    """Names of the convolutions whose weight comes out of a DequantizeLinear."""
    graph = onnx.load_model_from_string(model).graph
    restored = {o for node in graph.node if node.op_type == "DequantizeLinear" for o in node.output}
    return {n.name for n in graph.node if n.op_type == "Conv" and n.input[1] in restored}


def sums_overflow() -> bool:
    """Whether this is an x86 CPU without the instructions for sums of 8-bit products."""
    on_x86 = platform.machine() == "x86_64"
    return on_x86 and "vnni" not in Path("/proc/cpuinfo").read_text()


def zero_points(model: bytes, op: str) -> Iterable[Any]:
    graph = onnx.load_model_from_string(model).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    return [tensors[node.input[2]] for node in graph.node if node.op_type == op]


# A standard deviation so large that no convolution changes a score by much of it.
WIDE = 1e9


def test_the_signature_and_the_versions_stay() -> None:
    before = onnx.load_model_from_string(network())
    after = onnx.load_model_from_string(to_int8(network(), random_images(), (), WIDE))
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert after.ir_version == before.ir_version == 8
    assert [(e.domain, e.version) for e in after.opset_import] == [("", 17)]
    assert not any(t.external_data for t in after.graph.initializer)


def test_convolutions_are_int8_and_input_projection_score_and_map_are_not() -> None:
    written = to_int8(network(), random_images(), (), WIDE)
    assert quantized(written) == {"/stem/Conv", "/left/Conv", "/right/Conv", "/head/Conv"}
    assert describe_int8(written) == "4 of 5 convolutions in INT8; in float: /tail/Conv"


def test_islands_stay_float() -> None:
    result = quantized(to_int8(network(), random_images(), ("/left", "/head/Conv"), WIDE))
    assert result == {"/stem/Conv", "/right/Conv"}


def test_a_graph_that_takes_frames_is_quantized_behind_their_preparation(tmp_path: Path) -> None:
    source = SourceFrame(2 * SIZE, 4 * SIZE, "bayer-rggb")
    form = GraphInput(Geometry("stretch", SIZE, SIZE), source)
    images = [np.kron(image, np.ones((2, 4, 1), np.uint8)) for image in random_images()]
    frames = [form.of_image(image) for image in images]
    framed = with_source(network(), source, form.geometry).model
    prepared = [form.prepared(image) for image in images]
    written = to_int8(framed, frames, (PROLOGUE,), WIDE)
    plain = to_int8(network(), prepared, (), WIDE)
    assert quantized(written) == quantized(plain)
    # Prepared exactly, frames have the ranges and the results of prepared images.
    for results, expected in zip(
        run(written, tmp_path, frames), run(plain, tmp_path, prepared), strict=True
    ):
        np.testing.assert_array_equal(results, expected)


def test_the_form_is_what_tensorrt_takes() -> None:
    """Signed, symmetric, no quantized bias, weights per channel behind Q/DQ of their own."""
    written = to_int8(network(), random_images(), (), WIDE)
    for op in ("QuantizeLinear", "DequantizeLinear"):
        points = list(zero_points(written, op))
        assert len(points) == 8
        assert all(p.dtype == np.int8 and not p.any() for p in points)
        assert sorted(p.size for p in points) == [1, 1, 1, 1, 16, 16, 16, 24]


def test_scores_and_maps_of_new_images_stay_close_for_any_batch(tmp_path: Path) -> None:
    fresh = random_images(8, seed=1)
    score, anomaly_map = run(network(), tmp_path, fresh)
    written = to_int8(network(), random_images(), (), float(score.std()))
    got, got_map = run(written, tmp_path, fresh)
    # It did round.
    assert np.abs(got - score).max() > 0
    assert np.abs(got - score).max() < 0.6 * score.std()
    assert np.abs(got_map - anomaly_map).max() < 0.1 * anomaly_map.std() + 0.6 * score.std()
    np.testing.assert_allclose(run(written, tmp_path, fresh[:1])[0], got[:1], atol=1e-5)


def test_openvino_computes_what_onnx_runtime_does(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("openvino", reason="needs the openvino extra")
    from flawline.runtime.engines.openvino_cpu import OpenVino

    # The other operators run in FP32 on any CPU.
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    images = random_images(4, seed=1)
    exact, _ = run(network(), tmp_path, images)
    written = to_int8(network(), random_images(), (), WIDE)
    expected, _ = run(written, tmp_path, images)
    sized = replace(bundle.manifest, geometry=Geometry("stretch", SIZE, SIZE))
    models = {"fp32": network(), "int8": written}
    golden = bundle.golden()
    added = write_bundle(tmp_path / "sized", sized, bundle.calibration, models, golden)
    score, anomaly_map = OpenVino.open(added, EngineOptions(threads=1, precision="int8"))(
        np.stack(images)
    )
    assert anomaly_map.shape == (4, SIZE, SIZE)
    # Both round ties and sums in their own order, and one step can grow. OpenVINO's 8-bit sums
    # overflow without VNNI. The error of a wrong kernel is several standard deviations.
    if not sums_overflow():
        assert np.median(np.abs(score - expected)) < 0.25 * exact.std()
    assert np.abs(score - expected).max() < exact.std()


def test_a_convolution_that_harms_the_scores_stays_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images, fresh = network(outlier=2000.0), random_images(), random_images(8, seed=1)
    score, _ = run(model, tmp_path, fresh)
    spread = float(score.std())
    written = to_int8(model, images, (), spread)
    assert "/left/Conv" in describe_int8(written)
    monkeypatch.setattr(module, "LARGEST_CHANGE", np.inf)
    careless = to_int8(model, images, (), spread)
    assert "/left/Conv" not in describe_int8(careless)
    errors = [np.abs(run(m, tmp_path, fresh)[0] - score).max() for m in (written, careless)]
    assert errors[0] < 0.5 * errors[1]


def test_harmless_convolutions_are_tried_together(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    quantize = module._Quantizer.quantize

    def record(quantizer: Any, names: list[str]) -> Any:
        tried.append(list(names))
        return quantize(quantizer, names)

    monkeypatch.setattr(module._Quantizer, "quantize", record)
    to_int8(network(), random_images(), (), WIDE)
    # The second one is the graph that is written.
    assert [len(names) for names in tried] == [4, 4]
    tried.clear()
    with pytest.raises(ExportError, match="no convolution"):
        to_int8(network(), random_images(), (), 1e-9)
    # A group that changes the scores is tried in halves, down to one.
    assert [len(names) for names in tried] == [4, 2, 1, 1, 2, 1, 1]


def test_an_infinite_deviation_measures_no_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise AssertionError("scores are not needed")

    monkeypatch.setattr(module, "_score", fail)
    written = to_int8(network(outlier=2000.0), random_images(), (), math.inf)
    assert "/left/Conv" not in describe_int8(written)


def test_the_same_arguments_give_the_same_bytes_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model, reports = network(), []
    once = to_int8(model, random_images(), (), WIDE, progress=lambda *work: reports.append(work))
    assert once == to_int8(model, random_images(), (), WIDE)
    assert not list(tmp_path.iterdir())
    assert reports[0] == ("ranges", 1, 12)
    assert reports[-1] == ("convolutions", 4, 4)
    assert not caplog.records


def test_what_cannot_be_quantized_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"at least 5 good images to set its ranges, got 4; add some"
    ):
        to_int8(network(), random_images(4), (), 1.0)
    with pytest.raises(
        ExportError, match=r"no convolution outside of its FP32 islands; use fp32 or fp16"
    ):
        to_int8(network(), random_images(), ("/stem", "/left", "/right", "/head"), 1.0)
    with pytest.raises(ExportError, match=r"no convolution of this graph can be INT8; use fp32"):
        to_int8(network(), random_images(), (), 1e-9)


@pytest.mark.alone
def test_tensorrt_rtx_parses_and_builds_it() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the rtx extra")
    log = logger(trt)  # one per process: TensorRT keeps the first that it gets
    builder = trt.Builder(log)
    definition = builder.create_network(0)
    parser = trt.OnnxParser(definition, log)
    assert parser.parse(to_int8(network(), random_images(), (), WIDE)), parser.get_error(0).desc()
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("image", *[(n, SIZE, SIZE, 3) for n in (1, 1, 4)])
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(definition, config) is not None


def test_the_writer_uses_at_most_64_images_evenly_spaced(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []

    def record(model: bytes, images: Any, *_: Any) -> bytes:
        used.extend(images)
        return model

    monkeypatch.setattr(module, "to_int8", record)
    images = random_images(1) * 130
    images[0], images[-1] = "first", "last"
    model = network()
    assert write(model, GraphContext((), images, WIDE)) == model
    assert len(used) == 64
    assert (used[0], used[-1]) == ("first", "last")


@pytest.mark.torch
def test_simplenet_keeps_its_projection_and_its_map_in_float(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra")
    import builders
    import sample_graphs

    images = builders.random_images(count=6)
    # Few convolutions, to keep the test fast.
    layers = [f"/backbone/layer{i}" for i in (1, 2, 3)]
    written = to_int8(
        sample_graphs.simplenet_graph(),
        list(images.numpy()),
        [*sample_graphs.SIMPLENET_ISLANDS, *layers],
        WIDE,
    )
    result = quantized(written)
    assert "/backbone/conv1/Conv" in result
    assert not any(name.startswith(("/tail", *layers)) for name in result)
    with torch.inference_mode():
        score, _ = builders.small_simplenet()(images)
    score = score.numpy()
    (tmp_path / "q.onnx").write_bytes(written)
    got, _ = OnnxRuntime(tmp_path / "q.onnx", (64, 64), threads=1)(images.numpy())
    assert np.abs(got - score).max() < 0.1 * np.abs(score).max()
