"""The study of a GPU over many methods, without torch; times are never asserted."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gpu_check_targets
import pytest
from conftest import SIZE, tiny_model, write_tiny_bundle
from fakes import Install
from gpu_check_targets import NETWORK, PATIENCE_S

from flawline.benchmarks.studies.gpu_check import every_method, methods_command, one_method, stages
from flawline.benchmarks.studies.gpu_check.__main__ import main
from flawline.benchmarks.studies.gpu_check.calls import Absent
from flawline.benchmarks.studies.gpu_check.every_method import Found, measure_methods
from flawline.benchmarks.studies.gpu_check.expected import (
    expected_fps,
    find_aim,
    find_hardware,
)
from flawline.benchmarks.studies.gpu_check.one_method import (
    FACTS,
    Record,
    Task,
    measure_method,
)
from flawline.benchmarks.studies.gpu_check.stages import STAGES
from flawline.benchmarks.studies.gpu_check.summary import add_expected, summary
from flawline.runtime.bundle import add_model
from flawline.runtime.source_frame import SourceFrame

pytest_plugins = ["fakes.fixtures"]

FRAME = f"{SIZE}x{SIZE}:bgr"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "SECONDS", 0.0)
    monkeypatch.setattr(stages, "SETTLE_S", 0.0)
    # Others may be installed.
    monkeypatch.setattr(one_method, "ENGINES", {"tensorrt": "", "onnxruntime": "", "kserve": ""})


def write_network(folder: Path, **asked: Any) -> None:
    """Write what a call with --networks leaves of a method: its bundles and facts."""
    for name, source in (("images", None), ("frames", SourceFrame(SIZE, SIZE))):
        bundle = write_tiny_bundle(folder / name, source=source, fp32_islands=("/head",))
        add_model(bundle, "fp16", tiny_model())
    asked = {"backbone": "resnet18", "size": None, "frame": FRAME, **asked}
    (folder / FACTS).write_text(json.dumps({"asked": asked, "network": NETWORK}))


def task_of(tmp_path: Path, device: str = "cuda", seconds: float = 600.0) -> Task:
    folder, record = str(tmp_path / "padim"), str(tmp_path / "record.json")
    return Task("padim", "resnet18", None, FRAME, device, folder, record, seconds)


def measured(task: Task) -> Record:
    measure_method(asdict(task))
    return Record.read(Path(task.record))


# ---------------------------------------------------------------- one method


def test_an_engine_of_a_gpu_has_every_stage_in_its_default_precision(
    install: Install, tmp_path: Path, short: None
) -> None:
    install("10.13")
    write_network(tmp_path / "padim")
    record = measured(task_of(tmp_path))
    assert record.network == NETWORK
    assert {row["stage"] for row in record.rows} == set(STAGES)
    for row in record.rows:
        assert " Fake GPU fp16 " in row["engine"]
        assert row["finite"]
        assert row["drift"] < 1e-4
        assert row["p50_ms"] > 0
    assert record.absent == []
    # Later calls have the plans.
    assert len(list((tmp_path / "padim").glob("*/engines/**/model.plan"))) == 2


def test_a_graph_with_other_results_is_measured_with_its_drift(
    install: Install, tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("10.13")
    write_network(tmp_path / "padim")
    call = stages.FromCamera.__call__

    def shifted(self: stages.FromCamera, frames: Any) -> Any:
        outputs = list(call(self, frames))
        return [outputs[0] + 5.0, *outputs[1:]]

    monkeypatch.setattr(stages.FromCamera, "__call__", shifted)
    drifts = {row["stage"]: row["drift"] for row in measured(task_of(tmp_path)).rows}
    # The standard deviation of the good scores is 10.
    assert drifts["camera"] == pytest.approx(0.5)
    assert drifts["engine"] == pytest.approx(0.0, abs=1e-4)


def test_an_engine_that_cannot_be_used_is_absent_with_the_reason(
    tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_network(tmp_path / "padim")
    monkeypatch.setattr(one_method, "unusable_here", lambda name: f"install {name}")
    record = measured(task_of(tmp_path))
    assert record.absent == [Absent("tensorrt", "install tensorrt")]


def test_a_stage_that_fails_leaves_the_others(
    install: Install, tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("10.13")
    write_network(tmp_path / "padim")

    def broken(self: stages.FromCamera, frames: Any) -> Any:
        raise KeyError("x")

    monkeypatch.setattr(stages.FromCamera, "__call__", broken)
    record = measured(task_of(tmp_path))
    assert {row["stage"] for row in record.rows} == {"engine", "host", "source"}
    reasons = dict(record.absent)
    assert reasons["tensorrt fp16, camera"] == "KeyError: 'x'"
    assert "tensorrt fp16 on frames, source_camera" in reasons


def test_no_stage_begins_when_the_time_is_over(
    install: Install, tmp_path: Path, short: None
) -> None:
    install("10.13")
    write_network(tmp_path / "padim")
    record = measured(task_of(tmp_path, seconds=-1.0))
    assert record.rows == []
    reason = dict(record.absent)["tensorrt fp16"]
    assert reason == "out of time; give it more --minutes"


def test_a_network_that_was_made_with_other_flags_is_not_measured(tmp_path: Path) -> None:
    write_network(tmp_path / "padim", size=128)
    record = measured(task_of(tmp_path))
    assert record.rows == []
    ((name, reason),) = record.absent
    assert name == "all"
    assert reason.endswith("give another --networks folder")


# ---------------------------------------------------------------- many methods


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> str:
    """The module of what the process of a method calls in these tests."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(every_method, "MEASURE", f"{gpu_check_targets.__name__}:write_row")
    return gpu_check_targets.__name__


def test_a_method_that_ends_its_process_loses_neither_its_rows_nor_the_others(
    targets: str, tmp_path: Path
) -> None:
    names = ["simplenet", "padim", "stfpm"]
    deadline = time.monotonic() + 3 * PATIENCE_S
    counts = []
    for found in measure_methods(names, task_of(tmp_path), tmp_path, tmp_path, deadline):
        counts.append(len(found.rows))
    assert counts == [1, 2, 3]
    assert [row["method"] for row in found.rows] == names
    assert found.absent == {"padim": [Absent("the plan", "ended its process with status 3")]}
    # What the ones before did not need is left to those after them.
    shares = [row["seconds"] for row in found.rows]
    assert shares[0] <= PATIENCE_S < shares[1] < shares[2]


def test_a_method_whose_time_is_up_is_named_and_keeps_what_it_had(
    targets: str, tmp_path: Path
) -> None:
    # Time for the process to start on a busy machine.
    deadline = time.monotonic() + 8.0
    (found,) = measure_methods(["spd"], task_of(tmp_path), tmp_path, tmp_path, deadline)
    ((name, reason),) = found.absent["spd"]
    assert name == "the plan"
    assert reason.startswith("gave no answer within ")
    assert reason.endswith("; give it more --minutes")
    assert len(found.rows) == 1
    (found,) = measure_methods(["spd"], task_of(tmp_path), tmp_path, tmp_path, time.monotonic())
    assert found.absent["spd"] == [Absent("all", "out of time; give it more --minutes")]


def test_results_are_written_after_every_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def two(*_: Any) -> Any:
        row = {"engine": "e", "stage": "host", "drift": 0.0, "finite": True, "p50_ms": 1.0}
        row["fps"] = 1000.0
        found = Found({"padim": NETWORK}, [{"method": "padim", **row}])
        yield found
        (path,) = tmp_path.rglob("gpu-padim-stfpm-resnet18-256.json")
        assert len(json.loads(path.read_text())["rows"]) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(methods_command, "measure_methods", two)
    words = ["--methods", "padim", "stfpm", "--device", "cpu", "--size", "256"]
    assert main([*words, "--out", str(tmp_path)]) != 0
    (path,) = tmp_path.rglob("gpu-padim-stfpm-resnet18-256.md")
    assert "| padim | 256x256 |" in path.read_text()


def test_the_command_measures_networks_that_are_there_in_a_process_each(
    targets: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(every_method, "MEASURE", f"{targets}:measure_shortly")
    write_network(tmp_path / "networks" / "padim")
    words = ["--methods", "padim", "--device", "cpu", "--frame", FRAME]
    words += ["--networks", str(tmp_path / "networks"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    page = capsys.readouterr().out
    (path,) = tmp_path.glob("out/*/gpu-padim-resnet18.json")
    result = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() == page
    # An engine of the CPU has no stages on the GPU.
    found = {row["stage"] for row in result["rows"]}
    assert found == {"host", "camera", "source_camera"}
    assert any(row["engine"].startswith("onnxruntime ") for row in result["rows"])
    assert result["networks"]["padim"] == {**NETWORK, "expected_fps": None, "aim_fps": None}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["padim", "nix"], "--methods nix: unknown; known: all, simplenet, "),
        (["padim", "--frame", "9"], "--frame '9' is not WIDTHxHEIGHT"),
        (["padim", "--bundle", "b"], "unrecognized arguments: --bundle"),
        (["padim", "--minutes", "0"], "nothing was measured; the reasons are above"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: Any = main(["--methods", *words, "--device", "cpu"])
    except SystemExit as exit_:
        status = exit_.code
    assert status == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_machine_without_a_gpu_is_said_before_anything_is_made(
    targets: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(every_method, "DEVICE", f"{targets}:no_device")
    assert main(["--methods", "all"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no driver; use a machine with an NVIDIA GPU, or try the command with" in line


# ---------------------------------------------------------------- what is expected


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("Orin board: NVIDIA Jetson Orin Nano Engineering Reference Developer Kit", "Orin Nano"),
        ("Orin NVIDIA Jetson Orin Nano Engineering Kit Super", "Orin Nano Super"),
        ("NVIDIA T400", None),
        ("AMD EPYC", None),
    ],
)
def test_a_gpu_is_found_by_the_words_of_its_name(text: str, name: str | None) -> None:
    found = find_hardware(text)
    assert (found and found.name) == name


# MACs, kernels and weights of the two backbones to layer3, and the FPS that were estimated for them
# by hand from the same figures of each GPU.
SMALL = (1_840_000_000, 17, 6_000_000)
LARGE = (15_300_000_000, 43, 50_000_000)


@pytest.mark.parametrize(
    ("gpu", "network", "milliseconds"),
    [
        ("H100", SMALL, (0.1, 0.2)),
        ("A100", SMALL, (0.15, 0.25)),
        ("T4", SMALL, (0.4, 0.6)),
        ("AGX Orin", SMALL, (0.4, 0.8)),
        ("H100", LARGE, (0.25, 0.45)),
        ("A100", LARGE, (0.4, 0.7)),
        ("T4", LARGE, (1.3, 2.5)),
    ],
)
def test_the_estimate_overlaps_those_of_known_networks(
    gpu: str, network: tuple[int, int, int], milliseconds: tuple[float, float]
) -> None:
    hardware = find_hardware(gpu)
    assert hardware is not None
    lowest, highest = expected_fps(hardware, *network)
    assert lowest < 1e3 / milliseconds[0]
    assert highest > 1e3 / milliseconds[1]
    # More work is never faster.
    assert expected_fps(hardware, 2 * network[0], *network[1:])[0] < lowest


def test_an_aim_is_that_of_its_backbone_size_and_gpu() -> None:
    h100, t4 = find_hardware("H100"), find_hardware("T4")
    wide = {"backbone": "wide_resnet50_2", "size": [288, 288]}
    assert find_aim(h100, NETWORK) == 5000
    assert find_aim(h100, wide) == 2000
    assert find_aim(h100, {**NETWORK, "size": [128, 128]}) is None
    assert find_aim(t4, NETWORK) is None
    assert find_aim(None, NETWORK) is None


def test_the_page_has_what_is_expected_beside_what_was_measured() -> None:
    def row(method: str, stage: str, fps: float, drift: float, finite: bool = True) -> dict:
        values = {"method": method, "engine": "trt fp16", "stage": stage, "drift": drift}
        return {**values, "finite": finite, "p50_ms": 1e3 / fps, "fps": fps}

    network = {**NETWORK, "macs": 1_840_000_000, "kernels": 17, "weight_bytes": 6_000_000}
    networks = {"padim": network, "stfpm": network}
    rows = [
        row("padim", "engine", 8000.0, 0.25),
        row("padim", "source", 4000.0, 0.5),
        row("padim", "camera", 99.5, 0.1),
        row("stfpm", "engine", 2000.0, 0.0, finite=False),
    ]
    rtx = Absent("tensorrt-rtx", "install it")
    absent = {"padim": [rtx], "stfpm": [rtx], "spd": [rtx, Absent("the plan", "no answer")]}
    found = Found(networks, rows, absent)
    about = {"methods": ["padim", "stfpm", "spd"], "backbone": "resnet18", "size": None}
    about |= {"frame": "1920x1080:bgr", "device": "NVIDIA H100 80GB HBM3"}
    about |= {"machine": {"cpu": "c"}, "other_processes": 0.0}
    add_expected(found, about["device"], about["machine"])
    page = summary(about, found).splitlines()
    assert page[0].startswith("3 methods, resnet18, the size of each method; NVIDIA H100")
    start = "| padim | 256x256 | 1.84 | trt fp16 | 0.125 | 8,000 | "
    (line,) = [line for line in page if line.startswith(start)]
    assert line.endswith(" | 5,000, reached | 4,000 | – | 99.5 | – | 5.0e-01 |")
    assert "8,183 to 20,457" in line
    (line,) = [line for line in page if line.startswith("| stfpm ")]
    assert "| 5,000, missed |" in line
    assert line.endswith("| not finite |")
    assert "- every method: tensorrt-rtx: install it" in page
    assert "- spd: the plan: no answer" in page
