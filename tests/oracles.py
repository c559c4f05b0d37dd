"""Comparisons with a reference that tests of several methods share. Needs torch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from flawline.train.method import Method

# dtype -> largest difference of literal and fused form, relative to the spread of the results.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}


def assert_fused_equals_literal(method: Method, images: torch.Tensor, fused: Any = None) -> None:
    """Compare both forms of a method in both precisions; images are uint8 [N, H, W, 3].

    `fused` makes the fused form of a method; default is the method's own.
    """
    for dtype, tolerance in TOLERANCES.items():
        model = copy.deepcopy(method).to(dtype).eval()
        module = fused(model) if fused else model.fused()
        with torch.inference_mode():
            score, anomaly_map = model(images)
            fused_score, fused_map = module(images)
        assert fused_map.dtype == anomaly_map.dtype == dtype
        scale = float(anomaly_map.std() + score.std(correction=0))
        assert float((score - fused_score).abs().max()) <= tolerance * scale
        assert float((anomaly_map - fused_map).abs().max()) <= tolerance * scale


def assert_equal_state(a: torch.nn.Module, b: torch.nn.Module) -> None:
    """Require that two modules have bit-identical parameters and buffers."""
    other = b.state_dict()
    assert a.state_dict().keys() == other.keys()
    for name, value in a.state_dict().items():
        assert torch.equal(value, other[name]), name


def relative_error(got: Any, expected: Any) -> float:
    """The largest difference, relative to the range of the expected values."""
    return float(np.abs(got - expected).max() / np.ptp(expected))
