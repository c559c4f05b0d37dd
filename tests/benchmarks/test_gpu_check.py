"""The study of a GPU, tried out on the CPU; times are never asserted."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from flawline.benchmarks.studies.gpu_check import calls, measure
from flawline.benchmarks.studies.gpu_check.__main__ import main
from flawline.benchmarks.studies.gpu_check.calls import PUBLISHED
from flawline.benchmarks.studies.gpu_check.report import gpu_report
from flawline.runtime.engines.onnxruntime_cpu import OnnxRuntime

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


class GraphEngine:
    """An engine that compiles for a GPU, with or without a CUDA graph."""

    compiles: ClassVar[bool] = True
    description = "toy fp32"

    def __init__(self, graph_enabled: bool) -> None:
        self.graph_enabled = graph_enabled
        self.uses_graph = True
        self.wants_map = True

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        return [images.mean((1, 2, 3)), images if self.wants_map else images[:, :0]]

    def close(self) -> None:
        pass


@pytest.mark.parametrize("graph_enabled", [False, True])
def test_every_engine_that_compiles_is_measured_with_its_graph_if_it_has_one(
    graph_enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "ENGINES", {"toy": "", "onnxruntime": ""})
    monkeypatch.setattr(calls, "missing", lambda name: None)
    kinds = {"toy": GraphEngine, "onnxruntime": OnnxRuntime}
    monkeypatch.setattr(calls, "engine_class", kinds.__getitem__)
    monkeypatch.setattr(calls, "PRECISIONS", ("fp32",))
    monkeypatch.setattr(calls, "_open", lambda *arguments: GraphEngine(graph_enabled))
    with ExitStack() as stack:
        measured = dict(calls.engine_calls(None, stack))  # type: ignore[arg-type]
    expected = ["toy fp32"]
    if graph_enabled:
        expected += ["toy fp32, CUDA graph", "toy fp32, CUDA graph, score only"]
    assert list(measured) == expected
    assert not measured["toy fp32"].uses_graph
    if graph_enabled:
        _, no_map = measured[expected[-1]](np.ones((1, 2, 2, 3), np.uint8))
        assert no_map.size == 0
