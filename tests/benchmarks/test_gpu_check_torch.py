"""The study of a GPU with its rows in torch, tried out on the CPU; times are never asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import write_source_bundle

torch = pytest.importorskip("torch", reason="needs the train extra")

from flawline.benchmarks.studies.gpu_check import measure, subject, torch_forms
from flawline.benchmarks.studies.gpu_check.__main__ import main
from flawline.benchmarks.studies.gpu_check.calls import PUBLISHED
from flawline.benchmarks.studies.options import NetworkOptions
from flawline.train.checkpoint import save_checkpoint

pytestmark = pytest.mark.torch

FUSED = "torch eager fp32, fused"


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
    assert calls[:2] == [(PUBLISHED, 1), (FUSED, 1)]
    assert {batch for _, batch in calls} == {1, 2}
    for row in result["rows"]:
        assert row["drift"] < (0.1 if "fp16" in row["call"] else 1e-4)


def test_a_bundle_for_frames_has_no_rows_in_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_source_bundle(tmp_path / "framed")
    monkeypatch.setattr(subject, "ENGINES", {"onnxruntime": ""})
    words = ["--bundle", str(bundle.path), "--device", "cpu", "--out", str(tmp_path)]
    assert main([*words, "--checkpoint", "c.pt"]) == 2
    assert "takes frames of 192x128:bayer-grbg, and the forms in" in capsys.readouterr().err
    assert main(words) == 0
    assert "192x128:bayer-grbg to 64x64" in capsys.readouterr().out


def test_the_checkpoint_of_a_bundle_adds_the_rows_in_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = NetworkOptions("simplenet", "resnet18", 64, "random", None, 0)
    method, bundle = torch_forms.network_with_bundle(options, tmp_path / "bundle")
    save_checkpoint(tmp_path / "c.pt", method, {})
    monkeypatch.setattr(subject, "ENGINES", {"onnxruntime": ""})
    words = ["--bundle", str(bundle.path), "--device", "cpu"]
    assert main([*words, "--checkpoint", str(tmp_path / "c.pt"), "--out", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    (path,) = tmp_path.rglob("gpu-bundle.json")
    rows = json.loads(path.read_text())["rows"]
    names = {row["call"] for row in rows}
    assert {PUBLISHED, FUSED} <= names
    assert any(name.startswith("onnxruntime") for name in names)
    assert "times published" in page
    assert "in PyTorch:" not in page
    for row in rows:
        assert row["drift"] < (0.1 if "fp16" in row["call"] else 1e-4)

    assert main(words) == 0
    assert "give the --checkpoint that the bundle was built from" in capsys.readouterr().out

    options = NetworkOptions("simplenet", "resnet18", 96, "random", None, 0)
    other, _ = torch_forms.network_with_bundle(options, tmp_path / "other")
    save_checkpoint(tmp_path / "other.pt", other, {})
    assert main([*words, "--checkpoint", str(tmp_path / "other.pt")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "was not built from" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_machine_without_a_gpu_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmarks.studies.gpu_check: torch finds no GPU on this machine")
