"""Exported graphs without the map, and with a static batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import onnx
from builders import random_images, small_simplenet

from flawline.export.graphs.to_onnx import node_types, onnx_from_module
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime

pytestmark = pytest.mark.torch


def node_names(model: bytes) -> set[str]:
    return {node.name for node in onnx.load_model_from_string(model).graph.node}


def test_the_score_alone_drops_map_and_blur_and_keeps_the_names(tmp_path: Path) -> None:
    model = small_simplenet()
    whole = onnx_from_module(model.fused(), model.geometry)
    lean = onnx_from_module(model.fused(), model.geometry, ("score",))
    dropped = node_names(whole) - node_names(lean)
    assert node_names(lean) < node_names(whole)
    assert all(name.startswith("/smooth") for name in dropped)
    assert "MatMul" not in node_types(lean)
    assert len(lean) < len(whole)
    (tmp_path / "m.onnx").write_bytes(lean)
    score, anomaly_map = OnnxRuntime(tmp_path / "m.onnx", (0, 0), 1)(random_images().numpy())
    with torch.inference_mode():
        np.testing.assert_allclose(score, model(random_images())[0], rtol=1e-4, atol=1e-4)
    assert anomaly_map.shape == (2, 0, 0)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_static_batch_is_that_batch(batch: int, tmp_path: Path) -> None:
    model = small_simplenet(size=72)
    data = onnx_from_module(model.fused(), model.geometry, batch=batch)
    graph = onnx.load_model_from_string(data).graph
    for value, rank in zip((*graph.input, *graph.output), (4, 1, 3), strict=True):
        dims = value.type.tensor_type.shape.dim
        assert dims[0].dim_value == batch
        assert len(dims) == rank
        assert not any(d.dim_param for d in dims)
    (tmp_path / "m.onnx").write_bytes(data)
    score, anomaly_map = OnnxRuntime(tmp_path / "m.onnx", (72, 72), 1)(
        random_images(72, batch).numpy()
    )
    with torch.inference_mode():
        expected = model(random_images(72, batch))
    np.testing.assert_allclose(score, expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(anomaly_map, expected[1], rtol=1e-4, atol=1e-4)
