"""Bundles that were built for the score alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import tiny_model, write_tiny_bundle

from flawline.runtime.bundle import Bundle


def write_score_bundle(path: Path) -> Bundle:
    """Write the tiny bundle without the map; skips the test without onnx."""
    onnx = pytest.importorskip("onnx", reason="needs the train extra")
    model = onnx.load_model_from_string(tiny_model())
    del model.graph.output[1]
    return write_tiny_bundle(path, model.SerializeToString(), outputs=("score",))
