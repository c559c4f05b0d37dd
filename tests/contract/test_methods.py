"""What every listed method promises, over METHODS: to be listed is to be tested."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx

from flawline.export.graphs.to_fp16 import in_island, to_fp16
from flawline.export.graphs.to_onnx import node_types, onnx_from_module
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime
from flawline.runtime.image import Geometry
from flawline.train import METHODS
from flawline.train.backbones import DEFAULT_BACKBONE
from flawline.train.blocks.fused import fp32_islands
from flawline.train.checkpoint import load_checkpoint, save_checkpoint
from flawline.train.data.demo import render
from flawline.train.method import Fit, Method, resolve_method

pytestmark = pytest.mark.torch
SIZE, IMAGES = 64, 10


@pytest.fixture(scope="module", params=METHODS)
def fitted(request: pytest.FixtureRequest) -> tuple[Method, Any]:
    """Each method in its own defaults at 64 pixels, fitted on ten rendered boards; and a bad one behind the good."""
    kind = resolve_method(request.param)
    settings = replace(
        kind.settings_for(DEFAULT_BACKBONE), geometry=Geometry("stretch", SIZE, SIZE)
    )
    method = kind(settings)
    good = [render("board", None, seed, SIZE)[0] for seed in range(IMAGES)]
    method.load_weights("random", 0, good)
    steps = min(method.steps(settings, IMAGES, None), 30)
    assert method.fit(Fit(good, steps)) == steps
    return method.eval(), np.stack(good)


def test_the_exported_form_is_the_same_function(fitted: tuple[Method, Any]) -> None:
    method, images = fitted
    with torch.inference_mode():
        literal, fused = (
            module(torch.from_numpy(images[:3])) for module in (method, method.fused())
        )
    for a, b in zip(literal, fused, strict=True):
        assert a.dtype == b.dtype == torch.float32
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4 * float(literal[1].std()))


def test_one_graph_signature_any_batch_and_no_warning(
    fitted: tuple[Method, Any], tmp_path: Path
) -> None:
    method, images = fitted
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = onnx_from_module(method.fused(), method.geometry)
    graph = onnx.load_model_from_string(data).graph
    assert [n.op_type for n in graph.node if "image" in n.input] == [
        "Cast"
    ]  # TensorRT reads bytes into nothing else
    assert not {"Unfold", "Shape", "Range", "TopK", "NonZero"} & set(node_types(data))
    (tmp_path / "m.onnx").write_bytes(data)
    engine = OnnxRuntime(tmp_path / "m.onnx", (SIZE, SIZE), 1)
    with torch.inference_mode():
        score, heat = method(torch.from_numpy(images[:3]))
    spread = float(heat.std())
    for n in (1, 3):
        got_score, got_map = engine(images[:n])
        np.testing.assert_allclose(got_score, score[:n], rtol=1e-3, atol=1e-3 * spread)
        np.testing.assert_allclose(got_map, heat[:n], rtol=1e-3, atol=1e-3 * spread)


def test_a_checkpoint_holds_all_of_it(fitted: tuple[Method, Any], tmp_path: Path) -> None:
    method, images = fitted
    save_checkpoint(tmp_path / "c.pt", method, {"data": "rendered"})
    loaded, told, training = load_checkpoint(tmp_path / "c.pt")
    assert (told, training) == ({"data": "rendered"}, None)
    with torch.inference_mode():
        for a, b in zip(
            method(torch.from_numpy(images[:2])), loaded(torch.from_numpy(images[:2])), strict=True
        ):
            assert torch.equal(a, b)


@pytest.mark.alone
def test_the_current_builder_of_tensorrt_takes_it_in_fp16(
    fitted: tuple[Method, Any], tmp_path: Path
) -> None:
    """NVIDIA's own parser and builder, which need no GPU: convolutions and products in HALF, islands in FLOAT."""
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the rtx extra")
    from flawline.runtime.engines.tensorrt.build import parse

    method, _ = fitted
    islands = fp32_islands(method.fused())
    assert islands
    path = tmp_path / "model.fp16.onnx"
    path.write_bytes(to_fp16(onnx_from_module(method.fused(), method.geometry), islands))
    builder, network, parser = parse(trt, path, typed=True)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    convolutions = [x for x in layers if x.type == trt.LayerType.CONVOLUTION]
    halves = {x.get_output(0).dtype for x in convolutions if not in_island(x.name, islands)}
    assert halves == {trt.float16}
    arithmetic = (
        trt.LayerType.ELEMENTWISE,
        trt.LayerType.REDUCE,
        trt.LayerType.MATRIX_MULTIPLY,
        trt.LayerType.UNARY,
    )
    island = [x for x in layers if in_island(x.name, islands) and x.type in arithmetic]
    assert island
    assert {x.get_output(0).dtype for x in island} == {trt.float32}
    plan = builder.build_serialized_network(network, _config(trt, builder, network))
    assert plan is not None
    assert plan.nbytes > 1_000_000
    del parser  # it owns weights of the network: it must live until here


def _config(trt: Any, builder: Any, network: Any) -> Any:
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    shape = tuple(network.get_input(0).shape)[1:]
    profile.set_shape("image", *((n, *shape) for n in (1, 1, 4)))
    config.add_optimization_profile(profile)
    return config
