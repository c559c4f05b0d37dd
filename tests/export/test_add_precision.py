"""A graph of another precision for a bundle: only what a writer writes, and only with parity."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs the train extra")
pytest.importorskip("tqdm", reason="needs the train extra")

from conftest import SIZE, write_levels

from flawline.export import ExportError
from flawline.export.add_precision import add_graph, write_graph
from flawline.export.graphs import WRITERS, GraphContext
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.precisions import FP32, PRECISIONS, Precision

CONTEXT = GraphContext(fp32_islands=(), good_images=[], score_std=1.0)
THRESHOLD = 100.0


def constant_writer(fp32: bytes, context: GraphContext) -> bytes:
    return b"written by the test"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Uniform images, whose score is their grey level; one is just above the threshold."""
    levels = {"train/good": range(80, 92), "test/good": [90], "test/bright": [101, 140]}
    return write_levels(tmp_path / "levels", levels, SIZE)


def test_every_graph_of_a_bundle_has_a_writer() -> None:
    written = set()
    for precision in PRECISIONS.values():
        if precision.file is not None and precision is not FP32:
            written.add(precision.name)
    assert written == set(WRITERS)
    for path in WRITERS.values():
        assert callable(resolve_name(path))


@pytest.mark.parametrize("precision", ["fp8", "fp4", "bf16", "fp32", "int4"])
def test_a_precision_without_a_writer_is_never_written_as_another(precision: str) -> None:
    with pytest.raises(ExportError, match=f"no graph of precision '{precision}' to write; choose"):
        write_graph(b"fp32", precision, CONTEXT)


def test_a_precision_that_no_writer_is_listed_for_is_not_added(
    bundle: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRECISIONS, "fp8", Precision("fp8", "model.fp8.onnx", 2.0, 2.0, 0.001))
    with pytest.raises(ExportError, match="no graph of precision 'fp8'"):
        add_graph(bundle, "fp8", data)
    assert not (bundle.path / "model.fp8.onnx").exists()
    assert read_bundle(bundle.path).precisions == ("fp32",)


def test_a_precision_is_written_by_its_own_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WRITERS, "fp8", f"{__name__}:constant_writer")
    assert write_graph(b"fp32", "fp8", CONTEXT) == b"written by the test"


def test_an_fp16_graph_is_added_and_its_parity_logged(
    bundle: Bundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added = add_graph(bundle, "fp16", data)
    assert added.precisions == ("fp32", "fp16")
    assert "fp16 against fp32: parity on " in capsys.readouterr().err


@pytest.mark.parametrize(("tolerance", "is_added"), [(0.01, False), (2.0, True)])
def test_a_flip_within_tolerance_is_listed_and_a_clear_one_refused(
    bundle: Bundle,
    data: Path,
    tolerance: float,
    is_added: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(
        PRECISIONS,
        "fp16",
        Precision("fp16", "model.fp16.onnx", 100 * tolerance, 1000.0, 0.001),
    )
    monkeypatch.setitem(WRITERS, "fp16", f"{__name__}:darker")
    flip = f"{data / 'test' / 'bright' / '101.png'}: 101 became 99.5, threshold 100"
    if is_added:
        assert add_graph(bundle, "fp16", data).precisions == ("fp32", "fp16")
        assert f"note: within tolerance of the threshold: {flip}" in capsys.readouterr().err
    else:
        with pytest.raises(ExportError, match=r"fp16 was not added: .* 101 became 99\.5"):
            add_graph(bundle, "fp16", data)
        assert read_bundle(bundle.path).precisions == ("fp32",)


def darker(fp32: bytes, context: GraphContext) -> bytes:
    """A graph whose score is lower by 1.5 than it should be."""
    import onnx
    from onnx import helper, numpy_helper

    model: Any = onnx.load_model_from_string(fp32)
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "score":
                node.output[index] = "exact_score"
    offset = numpy_helper.from_array(np.array(1.5, np.float32), "offset")
    model.graph.initializer.append(offset)
    model.graph.node.append(helper.make_node("Sub", ["exact_score", "offset"], ["score"]))
    written: bytes = model.SerializeToString()
    return written
