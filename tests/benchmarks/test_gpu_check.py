"""The study of a GPU, tried out on the CPU; times are never asserted."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flawline.benchmarks.studies.gpu_check import measure
from flawline.benchmarks.studies.gpu_check.__main__ import main
from flawline.benchmarks.studies.gpu_check.calls import PUBLISHED
from flawline.benchmarks.studies.gpu_check.report import gpu_report

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BATCHES", (1, 2))
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "WARM_UP", 0)


def test_the_study_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--device", "cpu", "--backbone", "resnet18", "--size", "64"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    (path,) = tmp_path.rglob("gpu-simplenet-resnet18-64.json")
    result = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() == page
    calls = [(row["call"], row["batch"]) for row in result["rows"]]
    assert calls[:2] == [(PUBLISHED, 1), ("torch eager fp32, fused", 1)]
    assert {batch for _, batch in calls} == {1, 2}
    for row in result["rows"]:
        assert row["drift"] < (0.1 if "fp16" in row["call"] else 1e-4)


def test_what_does_not_fit_into_the_time_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)

    def call(image: np.ndarray) -> list[np.ndarray]:
        return [image.mean((1, 2, 3))]

    reference = np.array([0.0, 1.0])
    rows = measure.measure_calls({"a": call}, images, reference, time.monotonic() - 1)
    assert rows == []
    assert "note: out of time before a, batch 1" in capsys.readouterr().err
    rows = measure.measure_calls({"a": call}, images, reference, time.monotonic() + 60)
    assert [(row["call"], row["batch"], row["drift"]) for row in rows] == [
        ("a", 1, 2.0),
        ("a", 2, 2.0),
    ]


def test_speed_is_relative_to_the_published_pipeline_at_the_same_batch() -> None:
    about = {"method": "m", "backbone": "b", "input": "1x1", "weights": "random", "device": "d"}
    times = {"p95_ms": 1, "p99_ms": 1, "images_per_s": 1, "drift": 0.0}
    rows = [
        {"call": PUBLISHED, "batch": 1, "p50_ms": 6.0, **times},
        {"call": "x", "batch": 1, "p50_ms": 2.0, **times},
        {"call": "x", "batch": 8, "p50_ms": 2.0, **times},
    ]
    lines = gpu_report(about, rows).splitlines()
    assert "| x | 1 | 2.0 | 1 | 1 | 1 | 3.00 | 0.0e+00 |" in lines
    assert "| x | 8 | 2.0 | 1 | 1 | 1 |  | 0.0e+00 |" in lines


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_machine_without_a_gpu_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmarks.studies.gpu_check: torch finds no GPU on this machine")
