"""A station that runs for minutes: nothing grows, and every frame is accounted for.

It takes 10 minutes; FLAWLINE_SOAK_MINUTES=1 tries it out.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra web")

from conftest import tiny_model, write_tiny_bundle
from fakes.http_peer import HttpPeer
from fakes.page import Watcher, ask
from fakes.watched_process import WatchedProcess, slope_per_minute

from flawline.runtime.files import replace_folder
from flawline.runtime.station.recipe import main as recipe

MINUTES = float(os.environ.get("FLAWLINE_SOAK_MINUTES", "10"))
SECONDS = 60 * MINUTES
CHANGE_S = min(60.0, SECONDS / 6)
# Caches, the thread pools and the pictures that are kept have their size by then.
WARM_UP_S = 0.4 * SECONDS
FPS = 25
# Bytes a minute.
MOST_GROWTH = 1e6
LEAST_MINUTES = 8
ADDRESS = re.compile(r"the live page is at http://127\.0\.0\.1:(\d+)/")
# Graphs that differ in nothing but their hashes.
GRAPHS = [tiny_model() + b"\x32\x01" + letter for letter in (b"a", b"b", b"c")]
RECIPES = ("one", "two")
# One of each in turn, so that the camera is opened again again and again.
FAULTS = ("lost", "damaged", "old", "missing")


def station(folder: Path, webhook: int) -> Path:
    """Write a station with two cameras, of which one hands out every frame, and its outputs."""
    for name, graph in zip(RECIPES, GRAPHS, strict=False):
        write_tiny_bundle(folder / "bundles" / name, graph)
    size = f"width=320&height=240&fps={FPS}"
    faults = []
    for number in range(1, int(SECONDS / 10) + 1):
        faults.append(f"{number * 10 * FPS}:{FAULTS[number % len(FAULTS)]}")
    content = {
        "recipe": "one",
        "recipes": [{"name": name, "bundle": f"bundles/{name}"} for name in RECIPES],
        "cameras": [
            {"name": "every", "uri": f"synthetic://?{size}&every_frame=1&queue=200"},
            {"name": "newest", "uri": f"synthetic://?{size}&stall=2&faults={','.join(faults)}"},
        ],
        "engine": {"name": "onnxruntime", "threads": 1},
        "outputs": [
            "jsonl:lines.jsonl",
            "overlays:saved?per_minute=60&limit=200&when_full=replace&record=1",
            f"webhook:http://127.0.0.1:{webhook}/line",
            "web:127.0.0.1:0",
        ],
    }
    path = folder / "station.json"
    path.write_text(json.dumps(content))
    return path


class Browser(threading.Thread):
    """Shows the live page all the time, with its pictures; another one comes and goes."""

    def __init__(self, log: Path) -> None:
        super().__init__(daemon=True)
        self.states = 0
        self.pictures = 0
        self.failure: Exception | None = None
        self.is_closing = False
        self._log = log

    def run(self) -> None:
        try:
            self._watch(self._port())
        except Exception as error:
            # At the end, the station closes the connection.
            if not self.is_closing:
                self.failure = error

    def _port(self) -> int:
        while not (found := ADDRESS.search(self._log.read_text())):
            time.sleep(0.1)
        return int(found[1])

    def _watch(self, port: int) -> None:
        watcher = Watcher(port)
        try:
            while not self.is_closing:
                assert len(watcher.next("state")["lanes"]) == 2
                self.states += 1
                answer = ask(port, "/api/lanes/newest/picture")
                self.pictures += answer.status == 200
                if self.states % 20 == 0:
                    Watcher(port).close()
        finally:
            watcher.close()


def run_for_a_while(process: subprocess.Popen[str], path: Path) -> int:
    """Change the recipe again and again, and each time its bundle later; return both together."""
    end = time.monotonic() + SECONDS
    changes = 0
    while end - time.monotonic() > 1.5 * CHANGE_S:
        time.sleep(CHANGE_S / 2)
        assert process.poll() is None
        name = RECIPES[(changes // 2 + 1) % len(RECIPES)]
        assert recipe([str(path), name, "--wait", "30"]) == 0
        time.sleep(CHANGE_S / 2)
        # Another one each time: the bundles have two of three graphs.
        exchange_bundle(path.parent / "bundles" / name, GRAPHS[changes // 2 % len(GRAPHS)])
        changes += 2
    time.sleep(max(0.0, end - time.monotonic()))
    return changes


def exchange_bundle(path: Path, graph: bytes) -> None:
    """Put a bundle with this graph in the place of another by a rename."""
    with replace_folder(path) as new:
        new.rmdir()
        write_tiny_bundle(new, graph)


@pytest.mark.slow
@pytest.mark.alone
def test_a_station_that_runs_for_minutes_loses_and_keeps_nothing(tmp_path: Path) -> None:
    peer = HttpPeer()
    path = station(tmp_path, peer.port)
    command = [sys.executable, "-m", "flawline.runtime.infer_stream", "--station", str(path)]
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=log,
            text=True,
        )
    watched = WatchedProcess(process.pid, every=SECONDS / 300)
    watched.start()
    browser = Browser(tmp_path / "log.txt")
    browser.start()
    try:
        changes = run_for_a_while(process, path)
        watched.stop()
        browser.is_closing = True
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (tmp_path / "log.txt").read_text()
    finally:
        process.kill()
        peer.kill()
        browser.join()
    assert browser.failure is None
    print(f"the browser got {browser.states} states and {browser.pictures} pictures")
    assert browser.pictures > SECONDS / 10
    found = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    *lines, end = found
    summary = end["summary"]
    require_every_frame(lines, summary, changes)
    assert summary["delivered"] == summary["frames"] == len(lines)
    assert summary["not_delivered"] == 0
    assert len(peer.accepted) == len(lines) + 1
    pictures = list((tmp_path / "saved").glob("*.png"))
    assert len(pictures) == len(list((tmp_path / "saved").glob("*.json"))) <= 200
    require_nothing_grows(watched)


def require_every_frame(lines: list[dict[str, Any]], summary: dict[str, Any], changes: int) -> None:
    """Check that each captured frame was judged, or is counted as lost, by whom it was judged."""
    for name, camera in summary["cameras"].items():
        print(f"camera {name}: {camera}")
        judged = camera["frames"] - camera["unjudged"]
        assert camera["captured"] == judged + camera["dropped"] + camera["stale"]
    every = [line for line in lines if line["camera"] == "every"]
    assert [line["index"] for line in every] == list(range(len(every)))
    assert summary["cameras"]["every"]["unjudged"] == 0
    assert len(every) > 0.8 * FPS * SECONDS
    judges = [(line["recipe"], line["bundle"]) for line in every]
    assert sum(before != after for before, after in pairwise(judges)) == changes
    newest = summary["cameras"]["newest"]
    # The last fault may be at a frame that does not come any more.
    assert newest["reconnects"] >= max(1, int(SECONDS / 10) // len(FAULTS) - 1)


def require_nothing_grows(watched: WatchedProcess) -> None:
    samples = watched.after(WARM_UP_S)
    growth = slope_per_minute(samples)
    count = len(samples) // 3
    first, last = samples[:count], samples[-count:]
    print(
        f"memory {first[0].memory / 1e6:.1f} to {last[-1].memory / 1e6:.1f} MB, "
        f"{growth / 1e6:+.3f} MB a minute; threads {first[0].threads} to {last[-1].threads}, "
        f"files {first[0].files} to {last[-1].files}"
    )
    if MINUTES >= LEAST_MINUTES:
        assert growth < MOST_GROWTH
    # A camera that is being opened again, another engine or a browser has some more or fewer for a
    # moment.
    threads = [median(sample.threads for sample in third) for third in (first, last)]
    files = [median(sample.files for sample in third) for third in (first, last)]
    assert threads[1] <= threads[0]
    assert files[1] <= files[0]
