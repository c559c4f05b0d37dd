"""flawline sweep with real trainings: what it writes, and how it continues."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the train extra")

from builders import write_squares

from flawline.benchmarks import interleaved
from flawline.benchmarks.interleaved import Measurement
from flawline.benchmarks.sweep import __main__ as command
from flawline.benchmarks.sweep import plan as plans
from flawline.benchmarks.sweep import speed
from flawline.benchmarks.sweep.__main__ import main
from flawline.benchmarks.sweep.plan import read_cell
from flawline.benchmarks.sweep.store import Store, read_rows
from flawline.benchmarks.sweep.train_cell import Trainings, train_in_process
from flawline.runtime.engines import EngineError, missing

pytestmark = pytest.mark.torch

SRC = Path(__file__).resolve().parents[2] / "src"
FLAGS = ["--methods", "padim", "--flags", "padim=--size 64", "--weights", "random"]
FIRST = "padim-resnet18-squares-0"
SECOND = "padim-resnet18-squares-1"
PATIENCE_S = 120
# Keys of rows that differ between two runs on the same machine.
TIMES = ("_ms", "fps", "fps_slowest", "fps_fastest", "other_processes", "minutes_to_bundle")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"train/good": 12, "test/good": 4, "test/square": 4}
    return write_squares(tmp_path_factory.mktemp("data") / "squares", counts)


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "IMAGES", 2)
        patch.setattr(speed, "SETTLE_S", 0.0)
        # The report has tests of its own.
        patch.setattr(command, "_write_report", lambda store: None)
        yield


def start(out: Path, *flags: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "flawline", "sweep", "--out", str(out), *flags]
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=env)


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def status_of(store: Store, cell: str) -> str | None:
    try:
        status: str = json.loads(store.facts(cell).read_text())["status"]
    except FileNotFoundError:
        return None
    return status


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.endswith(TIMES)} for row in rows]


@pytest.fixture(scope="module")
def killed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, int]:
    """The folder of a sweep that was killed in its second training, and when the first one ended.

    The command line of the next run must not wait for a training that the killed one left behind.
    """
    out = tmp_path_factory.mktemp("killed") / "sweep"
    store = Store(out)
    process = start(out, "--data", str(data), *FLAGS, "--seeds", "0", "1", "--jobs", "1")
    try:
        wait_until(lambda: status_of(store, SECOND) == "begun")
    finally:
        process.kill()
        process.communicate()
    return store, store.facts(FIRST).stat().st_mtime_ns


@pytest.fixture(scope="module")
def resumed(killed: tuple[Store, int]) -> Store:
    """The folder after a second run, which has no flags but --out."""
    store, _time = killed
    assert main(["--out", str(store.root)]) == 0
    return store


def test_a_killed_sweep_continues_and_trains_no_cell_twice(
    killed: tuple[Store, int], resumed: Store, data: Path, tmp_path: Path
) -> None:
    assert resumed.facts(FIRST).stat().st_mtime_ns == killed[1]
    assert status_of(resumed, SECOND) == "trained"
    assert main(["--data", str(data), *FLAGS, "--seeds", "1", "--out", str(tmp_path)]) == 0
    again = read_rows(Store(tmp_path).measured(SECOND))
    assert without_times(again) == without_times(read_rows(resumed.measured(SECOND)))


def test_the_files_hold_what_repeats_a_row(resumed: Store) -> None:
    (row,) = read_rows(resumed.measured(FIRST))
    facts = json.loads(resumed.facts(FIRST).read_text())
    assert row["cell"] == FIRST
    assert (row["status"], row["reason"], row["seed"]) == ("measured", None, 0)
    assert (row["method"], row["backbone"], row["flags"]) == ("padim", "resnet18", "--size 64")
    assert row["minutes_to_bundle"] == facts["minutes"]
    assert row["bundle_id"] == facts["bundle_id"]
    assert row["image_auroc"] == 1.0
    assert row["machine"]["cpu"]
    # The protocol's.
    assert row["recall"] == 1.0
    assert 0 <= row["false_alarm_interval"][0] <= row["false_alarm_interval"][1] <= 1
    speeds = read_rows(resumed.speed("squares"))
    assert [row["cell"] for row in speeds] == [FIRST, SECOND]
    for row in speeds:
        assert 0 < row["engine_p50_ms"] <= row["engine_p95_ms"] <= row["engine_p99_ms"]
        assert row["engine_p50_ms"] < row["end_to_end_p99_ms"]
        assert row["calls"] == 2 * speed.REPEATS
        assert set(row["batch_fps"]) == {"1", "4", "8"}
        assert row["batch_fps"][str(row["best_batch"])] == row["best_batch_fps"]
    assert str(resumed.root) not in json.dumps([row, *speeds])


def test_a_finished_sweep_does_nothing(resumed: Store, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in resumed.root.glob("*/*.json")}
    assert main(["--out", str(resumed.root)]) == 0
    assert {path: path.stat().st_mtime_ns for path in resumed.root.glob("*/*.json")} == before
    lines = capsys.readouterr().err
    assert "2 of 2 cells are trained already" in lines
    assert "[1/" not in lines


def test_a_damaged_file_of_rows_is_one_line_and_measured_again(
    resumed: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    path = resumed.measured(FIRST)
    rows = read_rows(path)
    path.write_bytes(path.read_bytes()[:-40])
    assert main(["--out", str(resumed.root), "--measure-only"]) == 0
    assert without_times(read_rows(path)) == without_times(rows)
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "is damaged" in line and str(path) in line]) == 1
    assert any(line.startswith(f"[1/1] measured {FIRST}: 1 row") for line in lines)


def test_changed_test_images_are_measured_again_and_nothing_is_trained(
    resumed: Store, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_rows(resumed.measured(FIRST))
    (image, *_) = sorted((data / "test/square").iterdir())
    content = image.read_bytes()
    # Its pixels stay the same.
    image.write_bytes(content + b"1")
    plan = resumed.plan.read_text()
    try:
        # A run is a process, which reads the test images once.
        plans._test_hash.cache_clear()
        assert main(["--out", str(resumed.root), "--seeds", "0"]) == 0
    finally:
        image.write_bytes(content)
        resumed.plan.write_text(plan)
        plans._test_hash.cache_clear()
    lines = capsys.readouterr().err
    assert "1 of 1 cells are trained already" in lines
    assert f"[1/1] measured {FIRST}: 1 row" in lines
    assert "[1/1] speed of squares: 1 row" in lines
    (again,) = read_rows(resumed.measured(FIRST))
    assert again["test_sha256"] != rows[0]["test_sha256"]
    assert again["image_auroc"] == rows[0]["image_auroc"]
    assert main(["--out", str(resumed.root)]) == 0
    assert without_times(read_rows(resumed.measured(FIRST))) == without_times(rows)
    assert len(read_rows(resumed.speed("squares"))) == 2


def test_rows_of_another_machine_stay(resumed: Store) -> None:
    path = resumed.measured(SECOND)
    (row,) = read_rows(path)
    elsewhere = {**row, "device": "another CPU"}
    path.write_text(json.dumps([elsewhere]))
    assert main(["--out", str(resumed.root), "--measure-only"]) == 0
    rows = read_rows(path)
    assert rows[0] == elsewhere
    assert without_times(rows[1:]) == without_times([row])


@pytest.mark.skipif(missing("openvino") is not None, reason="needs openvino")
def test_an_engine_that_fails_has_a_row_and_the_others_continue(
    resumed: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = interleaved._measure_turn

    def fail(measurement: Measurement, *rest: Any) -> None:
        if measurement.run.engine == "openvino":
            raise EngineError("the driver has stopped")
        measure(measurement, *rest)

    monkeypatch.setattr(interleaved, "_measure_turn", fail)
    plan = resumed.plan.read_text()
    engines = ["onnxruntime", "openvino:fp32", "openvino:int8"]
    try:
        words = ["--out", str(resumed.root), "--seeds", "0", "--measure-only"]
        assert main([*words, "--engines", *engines]) == 0
    finally:
        resumed.plan.write_text(plan)
    reference, failed, refused = read_rows(resumed.measured(FIRST))
    assert reference["status"] == "measured"
    assert (failed["status"], failed["reason"]) == ("refused", "the driver has stopped")
    assert failed["precision"] == "fp32"
    # Random features of 64 pixels are too coarse for INT8.
    assert refused["status"] == "refused"
    assert "int8 was not added" in refused["reason"]
    assert "not measured: openvino fp32, openvino int8" in capsys.readouterr().err


def test_a_training_that_cannot_work_is_a_failed_cell(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(data), *FLAGS, "--out", str(tmp_path), "--train-only"]
    assert main([*words, "--flags", "padim=--size 64 --steps 3"]) == 1
    assert status_of(Store(tmp_path), FIRST) == "failed"
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "1 cell failed; the same command tries them again"
    assert lines[-2].startswith(f"failed: {FIRST}: flawline build: --steps: padim is fitted in one")


def test_a_killed_training_is_a_failed_cell(resumed: Store) -> None:
    trainings = Trainings()
    cell = read_cell(resumed, SECOND)
    # A folder of its own: the other tests need this cell.
    other = Store(resumed.root.parent / "other")
    other.root.mkdir()
    other.plan.write_text(resumed.plan.read_text())

    def kill() -> None:
        wait_until(lambda: trainings._running)
        (process,) = trainings._running
        process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    outcome = train_in_process(other.root, cell, None, trainings)
    killer.join()
    assert outcome.status == "failed"
    assert outcome.reason is not None
    assert outcome.reason.startswith("signal 9 (Killed) has ended it; see ")
    assert status_of(other, SECOND) == "failed"


def test_ctrl_c_ends_the_trainings_too(data: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    process = start(tmp_path, "--data", str(data), *FLAGS, "--seeds", "0", "1", "--jobs", "1")
    try:
        wait_until(lambda: status_of(store, FIRST) == "begun")
        process.send_signal(signal.SIGINT)
        messages = process.communicate(timeout=PATIENCE_S)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert messages.splitlines()[-1] == "interrupted; the same command continues"
    # Neither is a failure, and the second was not begun.
    assert status_of(store, FIRST) in ("begun", "trained")
    assert status_of(store, SECOND) is None
    assert not store.log("trained", SECOND).exists()


def test_ray_gives_the_same_rows(resumed: Store, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the cluster extra")
    process = start(
        tmp_path, "--data", str(data), *FLAGS, "--seeds", "0", "1", "--ray", "--jobs", "2"
    )
    messages = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 0, messages
    for cell in (FIRST, SECOND):
        rows = read_rows(Store(tmp_path).measured(cell))
        expected = read_rows(resumed.measured(cell))[-1:]
        assert without_times(rows) == without_times(expected)
