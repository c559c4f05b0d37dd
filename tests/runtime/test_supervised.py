"""A station under a supervisor: it reports, is killed and started again, and its log is whole."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tiny_model, write_tiny_bundle
from fakes.supervisor import WAIT_S, Supervisor

from flawline.runtime.audit.check import check_log
from flawline.runtime.infer_stream import main as stream
from flawline.runtime.station.settings.recipes import change_recipe

# A field of the graph that changes nothing but its hash.
DOC_STRING = b"\x32\x01x"
CAMERA = "synthetic://?width=64&height=48&fps=50"
RECIPES = ("first", "second")


@pytest.fixture
def station(tmp_path: Path) -> Path:
    """A station file with two recipes."""
    write_tiny_bundle(tmp_path / "first")
    write_tiny_bundle(tmp_path / "second", tiny_model() + DOC_STRING)
    content = {
        "recipe": RECIPES[0],
        "recipes": [{"name": name, "bundle": name} for name in RECIPES],
        "cameras": [{"uri": CAMERA}],
        "engine": {"name": "onnxruntime", "threads": 1},
    }
    path = tmp_path / "station.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def supervisor(station: Path) -> Iterator[Supervisor]:
    words = [sys.executable, "-m", "flawline.runtime.infer_stream", "--station", station]
    with Supervisor(words, f"{station.parent}/notify", watchdog_s=2.0) as supervisor:
        yield supervisor


def run_and_kill(supervisor: Supervisor, station: Path, rounds: int) -> None:
    """Change the recipe before and after each start, kill the stream, and check the log."""
    log = station.parent / "audit.jsonl"
    lines: list[bytes] = []

    def check() -> None:
        """Require that every line is still there that was there before, and nothing is torn."""
        nonlocal lines
        now = log.read_bytes().splitlines()
        assert now[: len(lines)] == lines
        assert not check_log(log).cut
        lines = now

    for number in range(rounds):
        change_recipe(station, RECIPES[(number + 1) % 2])
        check()
        supervisor.start(station.parent / f"log{number}")
        supervisor.wait_for("READY=1")
        # The stream has logged what it judges with before it says that it is ready.
        report = check_log(log)
        assert report.entries[-1].what == "in use"
        assert report.entries[-1].new is not None
        assert report.entries[-1].new["recipe"] == RECIPES[(number + 1) % 2]
        supervisor.wait_for("WATCHDOG=1")
        check()
        # Killed somewhere while it takes the other recipe, whose change is logged already.
        change_recipe(station, RECIPES[number % 2])
        check()
        supervisor.wait_until(lambda: False, seconds=0.07 * (number % 5))
        supervisor.kill()
        check()


def test_a_station_that_is_killed_again_and_again_loses_no_audit_line(
    supervisor: Supervisor, station: Path
) -> None:
    run_and_kill(supervisor, station, rounds=3)


@pytest.mark.slow
def test_a_station_that_is_killed_twenty_times_loses_no_audit_line(
    supervisor: Supervisor, station: Path
) -> None:
    run_and_kill(supervisor, station, rounds=20)


def test_signs_come_while_it_runs_and_it_says_when_it_ends(
    supervisor: Supervisor, station: Path
) -> None:
    supervisor.start(station.parent / "log")
    supervisor.wait_for("READY=1")
    supervisor.forget()
    assert supervisor.wait_until(lambda: supervisor.signs() >= 3), supervisor.log()
    assert any(line.startswith("STATUS=runs; ") for line in supervisor.messages)
    assert supervisor.kill(signal.SIGTERM) == 0
    supervisor.wait_until(lambda: False, seconds=0.0)
    assert "STOPPING=1" in supervisor.messages


@pytest.mark.slow
def test_a_process_that_does_nothing_gives_no_signs_and_says_where_it_was(
    supervisor: Supervisor, station: Path
) -> None:
    supervisor.start(station.parent / "log")
    supervisor.wait_for("WATCHDOG=1")
    assert supervisor.process is not None
    supervisor.process.send_signal(signal.SIGSTOP)
    supervisor.forget()
    assert not supervisor.wait_until(lambda: supervisor.signs() > 0, seconds=1.0)
    # As systemd ends it.
    supervisor.process.send_signal(signal.SIGABRT)
    supervisor.process.send_signal(signal.SIGCONT)
    assert supervisor.process.wait(WAIT_S) == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in supervisor.log()
    assert "infer_stream.py" in supervisor.log()


def test_a_stream_that_cannot_start_never_says_that_it_is_ready(
    station: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (station.parent / "first" / "model.onnx").write_bytes(b"no graph")
    address = f"{station.parent}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert stream(["--station", str(station)]) == 2
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.recv(4096)
