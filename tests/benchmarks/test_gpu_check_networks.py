"""The networks of the study of a GPU that torch makes, measured on the CPU."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from flawline.benchmarks.studies.gpu_check import one_method, stages
from flawline.benchmarks.studies.gpu_check.networks import make_network
from flawline.benchmarks.studies.gpu_check.one_method import Record, Task, measure_method
from flawline.benchmarks.studies.network import build_network
from flawline.benchmarks.studies.options import NetworkOptions
from flawline.runtime.bundle import read_bundle
from flawline.runtime.source_frame import parse_source

pytestmark = pytest.mark.torch


def options(method: str) -> NetworkOptions:
    return NetworkOptions(method, "resnet18", 64, "random", None, 0)


@pytest.mark.parametrize(
    ("method", "frame", "has_map"),
    [
        ("simplenet", "96x80:mono", True),
        pytest.param("differnet", "96x80:bayer-rggb", False, marks=pytest.mark.slow),
    ],
)
def test_a_network_is_made_and_measured_with_and_without_a_frame_in_its_graph(
    method: str, frame: str, has_map: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "SECONDS", 0.0)
    monkeypatch.setattr(stages, "SETTLE_S", 0.0)
    monkeypatch.setattr(one_method, "ENGINES", {"onnxruntime": ""})
    folder, path = tmp_path / method, tmp_path / "record.json"
    task = Task(method, "resnet18", 64, frame, "cpu", str(folder), str(path), 600.0)
    measure_method(asdict(task))
    record = Record.read(path)
    assert record.absent == []
    found = [(row["engine"].split()[0], row["stage"]) for row in record.rows]
    engine = [("onnxruntime", name) for name in ("host", "camera", "source_camera")]
    assert found == [("torch", "host"), *engine]
    for row in record.rows:
        assert row["drift"] < 1e-2
        assert row["finite"]
    frames = read_bundle(folder / "frames")
    assert str(frames.manifest.source) == frame
    assert frames.has_map is has_map
    assert frames.precisions == ("fp32", "fp16")
    assert record.network is not None
    assert record.network["macs"] > 1e7
    assert record.network["kernels"] > 17
    # The next call has the network, and does not need torch.
    monkeypatch.setattr(one_method, "find_spec", lambda name: None)
    measure_method(asdict(task))
    again = Record.read(path)
    assert again.network == record.network
    assert [row["stage"] for row in again.rows] == [name for _, name in engine]


def test_without_torch_a_network_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_method, "find_spec", lambda name: None)
    path = tmp_path / "record.json"
    folder = str(tmp_path / "network")
    task = Task("simplenet", "resnet18", 64, "96x80", "cpu", folder, str(path), 600.0)
    measure_method(asdict(task))
    ((name, reason),) = Record.read(path).absent
    assert name == "all"
    assert reason.startswith("making a network needs torch")


def test_a_memory_bank_is_as_large_as_after_a_usual_training(tmp_path: Path) -> None:
    few, _ = build_network(options("patchcore"), 1)
    made, _ = make_network(options("patchcore"), parse_source("96x80"), tmp_path / "bank")
    rows = [method.bank.vectors.shape[0] for method in (few, made)]
    assert rows[1] == pytest.approx(25 * rows[0], rel=0.1)
    golden = read_bundle(tmp_path / "bank" / "images").golden()
    assert np.isfinite(golden.scores).all()
