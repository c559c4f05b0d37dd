"""Comparisons with a reference that tests of several methods share. Needs torch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flawline.export.graphs.to_onnx import onnx_from_module
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime
from flawline.train.method import Method

# dtype -> largest difference of literal and fused form, relative to the spread of the results.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}


def assert_fused_equals_literal(
    method: Method,
    images: torch.Tensor,
    fused: Any = None,
    tolerances: dict[torch.dtype, float] = TOLERANCES,
) -> None:
    """Compare both forms of a method in both precisions; images are uint8 [N, H, W, 3].

    `fused` makes the fused form of a method; default is the method's own.
    """
    for dtype, tolerance in tolerances.items():
        model = copy.deepcopy(method).to(dtype).eval()
        module = fused(model) if fused else model.fused()
        with torch.inference_mode():
            score, anomaly_map = model(images)
            fused_score, fused_map = module(images)
        assert fused_map.dtype == anomaly_map.dtype == dtype
        assert fused_map.shape == anomaly_map.shape
        scale = float(score.std(correction=0))
        if anomaly_map.numel() > 0:
            scale += float(anomaly_map.std())
            assert float((anomaly_map - fused_map).abs().max()) <= tolerance * scale
        assert float((score - fused_score).abs().max()) <= tolerance * scale


def assert_equal_state(a: torch.nn.Module, b: torch.nn.Module) -> None:
    """Require that two modules have bit-identical parameters and buffers."""
    other = b.state_dict()
    assert a.state_dict().keys() == other.keys()
    for name, value in a.state_dict().items():
        assert torch.equal(value, other[name]), name


def assert_onnxruntime_agrees(
    method: Method, images: torch.Tensor, path: Path, rtol: float = 1e-4
) -> None:
    """Compare ONNX Runtime with torch for batches of one and of all images, uint8 [N, H, W, 3]."""
    path.write_bytes(onnx_from_module(method.fused(), method.geometry))
    engine = OnnxRuntime(path, method.settings.size, threads=1)
    with torch.inference_mode():
        score, anomaly_map = method(images)
    for batch in (1, len(images)):
        got_score, got_map = engine(images[:batch].numpy())
        np.testing.assert_allclose(got_score, score[:batch], rtol=rtol)
        np.testing.assert_allclose(got_map, anomaly_map[:batch], rtol=rtol, atol=rtol)


def relative_error(got: Any, expected: Any) -> float:
    """The largest difference, relative to the range of the expected values."""
    return float(np.abs(got - expected).max() / np.ptp(expected))
