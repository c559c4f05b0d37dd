"""The audit log: its chain, what is in it, cut lines, several writers, and changes by hand."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import write_tiny_bundle

from flawline.runtime import undo
from flawline.runtime.audit import log as log_module
from flawline.runtime.audit.__main__ import main
from flawline.runtime.audit.check import check_log
from flawline.runtime.audit.entry import changes
from flawline.runtime.audit.log import AuditError, open_log
from flawline.runtime.bundle import (
    CALIBRATION,
    Bundle,
    BundleError,
    add_model,
    read_bundle,
    write_calibration,
)
from flawline.runtime.infer_stream import main as stream
from flawline.runtime.undo import undo_calibration

WRITER = """
import sys
from pathlib import Path
from flawline.runtime.audit.log import open_log
for number in range(int(sys.argv[3])):
    with open_log(Path(sys.argv[1])) as log:
        last = log.last()
        count = 0 if last is None else last.new["count"]
        log.append(sys.argv[2], {"count": count}, {"count": count + 1})
"""

# Kills 50 writers, one after the other, each after some milliseconds.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from flawline.runtime.audit.log import open_log
random.seed(0)
for number in range(50):
    child = os.fork()
    if child == 0:
        while True:
            with open_log(Path(sys.argv[1])) as log:
                log.append("test", None, {"writer": number})
    time.sleep(random.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of three entries."""
    path = tmp_path / "audit.jsonl"
    for number in range(3):
        with open_log(path) as opened:
            opened.append("test", {"value": number}, {"value": number + 1})
    return path


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def kinds(bundle: Bundle) -> list[str]:
    return [entry["what"] for entry in entries(bundle.path / "audit.jsonl")]


def edit(bundle: Bundle, threshold: float) -> None:
    path = bundle.path / CALIBRATION
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps({**content, "threshold": threshold}))


def test_each_line_names_who_what_and_the_line_before(log: Path) -> None:
    first, second, _ = entries(log)
    assert first["previous"] is None
    assert second["previous"] is not None
    assert (second["from"], second["to"]) == ({"value": 1}, {"value": 2})
    assert first["user"]
    assert first["host"]
    assert first["time"].endswith("+00:00")
    assert len(check_log(log).entries) == 3


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_changed_line_is_named(log: Path, line: int) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"value": ', b'"value": 1', 1)
    log.write_bytes(b"".join(lines))
    if line == 2:
        # Nothing follows it: only its hash, noted elsewhere, can show the change.
        check_log(log)
        return
    with pytest.raises(AuditError, match=f"line {line + 2}: does not follow the line before"):
        check_log(log)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1:], "line 1: does not follow"),
        (lambda lines: [lines[0], lines[2]], "line 2: does not follow"),
        (lambda lines: [lines[0], lines[2], lines[1]], "line 2: does not follow"),
        (lambda lines: [lines[0], b"{}\n", *lines[1:]], "line 2: previous is missing"),
        (lambda lines: [lines[0], b"\n", *lines[1:]], "line 2: is not valid JSON"),
        (lambda lines: [lines[0], lines[1][:20] + b"\n", lines[2]], "line 2: is not valid JSON"),
        (lambda lines: [lines[0], b"\xff\xfe\n"], "line 2: is not valid JSON"),
    ],
)
def test_the_first_line_that_does_not_fit_is_named(log: Path, change: Any, message: str) -> None:
    log.write_bytes(b"".join(change(log.read_bytes().splitlines(keepends=True))))
    with pytest.raises(AuditError, match=message):
        check_log(log)


def test_lines_that_are_missing_at_the_end_are_found_by_a_noted_hash(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(log)]) == 0
    printed = capsys.readouterr().out
    assert "ok, 3 entries" in printed
    noted = printed.split("last hash ")[1].strip()
    assert main([str(log), "--contains", noted]) == 0
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))
    assert main([str(log)]) == 0
    assert main([str(log), "--contains", noted]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_cut_last_line_is_reported_and_repaired(
    log: Path, kept: int, capsys: pytest.CaptureFixture[str]
) -> None:
    *lines, last = log.read_bytes().splitlines(keepends=True)
    cut = b"".join(lines) + last[:kept]
    log.write_bytes(cut)
    assert main([str(log)]) == 0
    printed = capsys.readouterr().out
    assert "ok, 2 entries" in printed
    assert "the last line was cut off" in printed
    with open_log(log) as opened:
        # -1 left out the line break alone, so that the entry is whole.
        assert opened.last().new == {"value": 3 if kept == -1 else 2}
        opened.append("test", None, {"value": 9})
    assert log.read_bytes().startswith(cut)
    assert main([str(log)]) == 0
    what = [entry.what for entry in check_log(log).entries]
    assert what == ["test", "test", "test" if kept == -1 else "repair", "test"]


def test_the_last_entry_is_found_over_blocks_of_the_file(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "BLOCK", 7)
    with open_log(log) as opened:
        assert opened.last().new == {"value": 3}
        opened.append("other", None, {"value": 4})
        assert opened.last("test").new == {"value": 3}
        assert opened.last("none") is None
    assert len(check_log(log).entries) == 4


def test_two_processes_write_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    writers = []
    for name in ("a", "b"):
        command = [sys.executable, "-c", WRITER, str(path), name, "20"]
        writers.append(subprocess.Popen(command))
    assert [writer.wait(60) for writer in writers] == [0, 0]
    report = check_log(path)
    assert [entry.new for entry in report.entries] == [{"count": i + 1} for i in range(40)]
    assert {entry.what for entry in report.entries} == {"a", "b"}


def test_killed_writers_leave_a_log_that_fits_together(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=True, timeout=60)
    with open_log(path) as opened:
        opened.append("test", None, {"writer": "last"})
    report = check_log(path)
    assert not report.cut
    assert report.entries[-1].new == {"writer": "last"}
    assert len(report.entries) > 1


def test_a_lock_that_is_never_released_is_an_error(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "LOCK_S", 0.05)
    before = log.read_bytes()
    with log.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(AuditError, match="another process has held its lock"), open_log(log):
            pass
    assert log.read_bytes() == before


def test_a_writer_that_waited_finds_the_log_of_the_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "audit.jsonl").touch()
    lock = log_module._lock
    moved = []

    def locks_after_the_exchange(path: Path, *rest: Any) -> None:
        if not moved:
            folder.rename(tmp_path / "old")
            moved.append(folder.mkdir())
        lock(path, *rest)

    monkeypatch.setattr(log_module, "_lock", locks_after_the_exchange)
    with open_log(folder / "audit.jsonl") as opened:
        opened.append("test", None, {})
    assert len(check_log(folder / "audit.jsonl").entries) == 1
    assert not (tmp_path / "old" / "audit.jsonl").read_bytes()


def test_what_happens_to_a_bundle_is_logged(bundle: Bundle) -> None:
    first = replace(bundle.calibration, threshold=90.0)
    write_calibration(bundle, first)
    undo_calibration(bundle.path)
    add_model(bundle, "fp16", bundle.model().read_bytes())
    write_tiny_bundle(bundle.path, method="padim")
    assert kinds(bundle) == ["build", "calibrate", "undo", "build", "build"]
    built, calibrated, undone, added, replaced = entries(bundle.path / "audit.jsonl")
    assert built["from"] is None
    assert built["to"]["bundle"] == bundle.short_id
    assert list(changes(calibrated["from"], calibrated["to"])) == [
        "calibration.threshold 100.0 -> 90.0"
    ]
    assert undone["to"] == calibrated["from"]
    assert [text.split()[0] for text in changes(added["from"], added["to"])] == ["manifest"]
    assert replaced["from"] == added["to"]
    assert main([str(bundle.path)]) == 0


def test_a_calibration_that_was_edited_by_hand_gets_a_line(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(bundle, 80.0)
    assert main([str(bundle.path), "--list"]) == 0
    printed = capsys.readouterr().out
    assert "changed outside of its audit log: calibration.threshold 100.0 -> 80.0" in printed
    write_calibration(bundle, replace(bundle.calibration, threshold=90.0))
    assert "calibration.threshold 100.0 -> 80.0" in capsys.readouterr().err
    assert kinds(bundle) == ["build", "outside", "calibrate"]
    outside, calibrated = entries(bundle.path / "audit.jsonl")[1:]
    assert outside["to"]["calibration"]["threshold"] == 80.0
    assert calibrated["from"] == outside["to"]
    assert main([str(bundle.path)]) == 0
    assert "outside of its" not in capsys.readouterr().out


def test_a_stream_notices_what_was_edited_by_hand(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--bundle", str(bundle.path), "--camera", "synthetic://?frames=1"]
    words += ["--output", f"jsonl:{tmp_path / 'lines.jsonl'}"]
    assert stream(words) == 0
    assert "audit log" not in capsys.readouterr().err
    edit(bundle, 80.0)
    (bundle.path / "audit.jsonl").chmod(0o444)
    bundle.path.chmod(0o555)
    assert stream(words) == 0
    warning = "warning: the bundle was changed outside of its audit log: calibration.threshold"
    assert warning in capsys.readouterr().err
    bundle.path.chmod(0o755)


def test_a_damaged_calibration_that_undo_replaces_is_logged(bundle: Bundle) -> None:
    write_calibration(bundle, replace(bundle.calibration, threshold=90.0))
    (bundle.path / CALIBRATION).write_text("{")
    undo_calibration(bundle.path)
    assert kinds(bundle) == ["build", "calibrate", "outside", "undo"]
    assert "damaged" in entries(bundle.path / "audit.jsonl")[2]["to"]["calibration"]


def test_without_its_line_nothing_is_changed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    before = (bundle.path / "audit.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(AuditError, match="free disk space"):
            write_calibration(bundle, replace(bundle.calibration, threshold=90.0))
    assert read_bundle(bundle.path).calibration == bundle.calibration
    assert (bundle.path / "audit.jsonl").read_bytes() == before


def test_a_change_that_fails_after_its_line_gets_another_line(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_calibration(bundle, replace(bundle.calibration, threshold=90.0))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(undo, "write_atomically", full)
    with pytest.raises(BundleError):
        undo_calibration(bundle.path)
    failed = entries(bundle.path / "audit.jsonl")[-1]
    assert failed["what"] == "undo"
    assert failed["to"]["calibration"]["threshold"] == 90.0
    assert failed["note"].startswith("failed: ")
    assert read_bundle(bundle.path).calibration.threshold == 90.0


def test_a_log_that_is_no_file_is_an_error_of_one_line(
    tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "absent", tmp_path):
        assert main([str(path)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    (bundle.path / "audit.jsonl").unlink()
    assert main([str(bundle.path)]) == 2
    assert "the next change begins one" in capsys.readouterr().err
    write_calibration(bundle, replace(bundle.calibration, threshold=90.0))
    assert kinds(bundle) == ["calibrate"]


@pytest.mark.parametrize("content", [b"{}", b"\n", b"source,index\n", b'{"time": 3}\n'])
def test_another_file_is_no_log_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "station.json"
    path.write_bytes(content)
    with open_log(path) as log, pytest.raises(AuditError, match="is another file"):
        log.append("test", None, {})
    assert path.read_bytes() == content


def test_a_name_is_shown_as_it_is_written() -> None:
    assert list(changes({"path": "工位"}, {"path": "é"})) == ['path "工位" -> "é"']
