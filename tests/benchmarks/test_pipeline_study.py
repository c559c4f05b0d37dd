"""The study of the pipeline: what it compares, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from flawline.benchmarks.studies.pipeline import measure
from flawline.benchmarks.studies.pipeline.__main__ import main
from flawline.benchmarks.studies.pipeline.measure import FILE_SIZE, stream_fps, write_files
from flawline.benchmarks.studies.pipeline.report import pipeline_report
from flawline.benchmarks.studies.results import StudyError
from flawline.cameras import Camera, open_camera
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.outputs import open_output


def with_every_frame(uri: str) -> Camera:
    """Open a camera that drops no frame while this machine is busy."""
    return open_camera(f"{uri}&every_frame=1&queue=1000" if "?" in uri else uri)


def test_the_stream_is_compared_with_the_engine_and_with_a_loop(
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "open_camera", with_every_frame)
    out = tmp_path / "pipeline"
    words = ["--bundle", str(bundle.path), "--engine", "onnxruntime", "--frames", "3"]
    assert main([*words, "--rounds", "1", "--out", str(out)]) == 0
    result = json.loads(out.with_suffix(".json").read_text())
    (row,) = result["rows"]
    assert row["engine"].startswith("onnxruntime")
    for key, reference in (
        ("camera", "engine_fps"),
        ("saturated", "engine_fps"),
        ("files", "sequential_fps"),
    ):
        assert row[key][reference] > 0
        assert row[key]["stream_fps"] > 0
        assert row[key]["lowest_ratio"] <= row[key]["ratio"] <= row[key]["highest_ratio"]
    page = out.with_suffix(".md").read_text()
    assert page.strip() in capsys.readouterr().out
    assert "1 turns of 3 frames" not in page


def test_a_single_verdict_gives_no_rate(bundle: Bundle, tmp_path: Path) -> None:
    write_files(tmp_path / "files", 1)
    output = open_output(f"jsonl:{tmp_path / 'lines.jsonl'}", bundle)
    with (
        Detector(bundle, "onnxruntime", accept_size=True) as detector,
        pytest.raises(StudyError, match=r"fewer than 2 frames .*--frames"),
    ):
        stream_fps(detector, str(tmp_path / "files"), output)


def test_the_overhead_is_what_is_missing_to_the_slower_of_camera_and_engine() -> None:
    found = {
        "engine_fps": 250.0,
        "stream_fps": 95.0,
        "ratio": 0.95,
        "lowest_ratio": 0.9,
        "highest_ratio": 0.96,
    }
    files = {**found, "sequential_fps": 20.0, "ratio": 1.5}
    row = {"bundle": "part", "engine": "e", "input": "256x256", "camera": found, "files": files}
    row["saturated"] = {**found, "camera_fps": 375}
    result = {"rows": [row], "frames": 9, "rounds": 3, "cores": 2, "other_processes": 0.4}
    page = pipeline_report({**result, "machine": {"cpu": "a CPU"}})
    assert "| part | e | 256x256 | 100 | 250.0 | 95.0 | 5.0% | 4.0% | 10.0% |" in page
    assert "| part | e | 256x256 | 20.0 | 95.0 | 1.50 | 0.90 | 0.96 |" in page
    assert "other processes used 40% of the CPU" in page


def test_the_files_are_encoded_images_of_their_size(tmp_path: Path) -> None:
    write_files(tmp_path / "files", 2)
    paths = sorted((tmp_path / "files").iterdir())
    assert len(paths) == 2
    image = cv2.imread(str(paths[0]))
    assert image is not None
    assert image.shape == (FILE_SIZE[1], FILE_SIZE[0], 3)
    assert paths[0].read_bytes() != paths[1].read_bytes()
