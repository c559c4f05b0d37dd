"""The live page of the command: a threshold that is saved there is taken by the running stream."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra web")

from fakes.live_camera import WAIT_S
from fakes.page import ask, running_stream

from flawline.runtime.bundle import Bundle


@pytest.fixture
def station(bundle: Bundle, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A stream of a station file with two cameras, and the port of its page."""
    content = {
        "recipe": "cap",
        "recipes": [{"name": "cap", "bundle": str(bundle.path)}],
        "cameras": [
            {"name": name, "uri": "synthetic://?fps=20&width=64&height=48"}
            for name in ("left", "right")
        ],
        "engine": {"name": "onnxruntime", "threads": 1},
        "outputs": [f"jsonl:{tmp_path / 'lines.jsonl'}", "web:127.0.0.1:0"],
    }
    path = tmp_path / "station.json"
    path.write_text(json.dumps(content))
    with running_stream("--station", str(path)) as (stream, port):
        yield stream, port


def until(port: int, condition: Any) -> Any:
    """Return the first state of the page that meets a condition."""
    limit = time.monotonic() + 3 * WAIT_S
    while time.monotonic() < limit:
        state = ask(port, "/api/state").json
        if condition(state):
            return state
        time.sleep(0.1)
    raise AssertionError(f"it did not come: {state}")


def test_a_saved_threshold_is_taken_between_two_frames(
    station: tuple[subprocess.Popen[bytes], int], bundle: Bundle, tmp_path: Path
) -> None:
    stream, port = station
    state = until(port, lambda state: sum(lane["frames"] > 3 for lane in state["lanes"]) == 2)
    assert (state["recipe"], state["faults"]) == ("cap", [])
    assert [output["name"].partition(":")[0] for output in state["outputs"]] == ["jsonl", "web"]
    desk = ask(port, "/api/threshold").json
    wanted = {"person": "Anna Berg", "revision": desk["revision"], "threshold": 321.0}
    assert ask(port, "/api/threshold", "POST", wanted).status == 200
    until(port, lambda state: all(lane["threshold"] == 321 for lane in state["lanes"]))
    stream.terminate()
    assert stream.wait(3 * WAIT_S) == 0
    *lines, last = (tmp_path / "lines.jsonl").read_text().splitlines()
    assert [json.loads(line)["threshold"] for line in (lines[0], lines[-1])] == [100, 321]
    summary = json.loads(last)["summary"]
    # No frame was lost on the way.
    assert summary["frames"] == len(lines)
