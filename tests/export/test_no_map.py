"""A method that has no anomaly map: what users get from it, and what they are not shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from builders import write_squares

from flawline.benchmarks import evaluate, run
from flawline.benchmarks.bundle_report import __main__ as bundle_report
from flawline.benchmarks.bundle_report.provenance import _calibration
from flawline.benchmarks.studies.accuracy.report import accuracy_report
from flawline.export import ExportError, build
from flawline.export.graphs.to_onnx import choose_outputs
from flawline.runtime import infer_stream
from flawline.runtime.bundle import read_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineOptions
from flawline.runtime.manifest import GRAPH_OUTPUTS
from flawline.train.method import resolve_method

pytestmark = pytest.mark.torch
METHOD = "differnet"
FLAGS = ["--method", METHOD, "--weights", "random", "--size", "64", "--steps", "3", "--folds", "0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture(scope="module")
def bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    flags = [*FLAGS, "--save-checkpoint", str(out / "c.pt"), "--engine", "none"]
    assert build.main(["--data", str(data), "--out", str(out / "bundle"), *flags]) == 0
    return out / "bundle"


def test_its_bundle_is_built_for_the_score_alone(bundle: Path) -> None:
    read = read_bundle(bundle)
    assert read.manifest.outputs == ("score",)
    assert not read.has_map
    assert read.golden().maps.shape[1:] == (0, 0)
    assert read.manifest.map_peak.max == read.manifest.map_peak.std == 0
    assert "largest values of their maps" not in _calibration(read)


def test_a_map_is_refused_before_the_training(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "c.pt"
    flags = [*FLAGS, "--outputs", "map", "--save-checkpoint", str(checkpoint)]
    assert build.main(["--data", str(data), "--out", str(tmp_path / "bundle"), *flags]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].endswith(
        "differnet judges images as a whole and has no anomaly map; leave --outputs out"
    )
    assert not checkpoint.exists()


def test_outputs_are_those_of_the_method_unless_fewer_are_wanted() -> None:
    with_map, without = resolve_method("simplenet"), resolve_method(METHOD)
    assert choose_outputs(with_map, None) == GRAPH_OUTPUTS
    assert choose_outputs(with_map, ("score",)) == ("score",)
    assert choose_outputs(without, None) == choose_outputs(without, ("score",)) == ("score",)
    with pytest.raises(ExportError, match="has no anomaly map"):
        choose_outputs(without, GRAPH_OUTPUTS)


def test_a_stream_has_verdicts_and_refuses_to_paint(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = ["--bundle", str(bundle), "--camera", str(data / "test"), "--engine", "onnxruntime"]
    assert infer_stream.main(stream) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(np.isfinite(record["score"]) for record in records[:-1])
    assert infer_stream.main([*stream, "--save", str(tmp_path / "judged")]) == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith(
            "gives no maps to paint; leave this output (--save, --save-rejected) out, save frames "
            "without maps with ?paint=0, or build it with --outputs map, of a method that has maps"
        )
    )
    assert not (tmp_path / "judged").exists()
    with Detector(read_bundle(bundle), "onnxruntime") as detector:
        image = np.zeros((64, 64, 3), np.uint8)
        verdict = detector(image)
        assert verdict.anomaly_map is not None
        assert verdict.anomaly_map.shape == (0, 0)
        with pytest.raises(ValueError, match="there is no anomaly map"):
            detector.paint(image, verdict.anomaly_map)


def test_the_tables_say_that_there_is_no_map(bundle: Path, data: Path) -> None:
    masks = data / "ground_truth" / "square"
    masks.mkdir(parents=True, exist_ok=True)
    row = evaluate.evaluate_bundle(bundle, data, "onnxruntime", EngineOptions(), repeats=1)
    assert row["image_auroc"] is not None
    assert row["has_map"] is False
    table = run.run_table([row])
    header, _, line = table.splitlines()[:3]
    cells = dict(zip(header.split("|"), line.split("|"), strict=True))
    named = {title.strip(): cell.strip() for title, cell in cells.items()}
    assert named["P-AUROC"] == named["AUPRO"] == "no map"
    page = accuracy_report([{**row, "seed": 0, "minutes_to_bundle": 0.1}], "command")
    assert page.splitlines()[2].count("no map") == 2


def test_the_report_says_so_too(bundle: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    words = ["--bundle", str(bundle), "--data", str(data), "--out", str(out)]
    assert bundle_report.main(words) == 0
    page = out.read_text()
    assert "has no anomaly maps" in page
    assert "largest values of their maps" not in page
