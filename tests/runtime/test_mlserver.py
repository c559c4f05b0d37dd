"""The engine `kserve` with a real server: MLServer, which is killed and restarted under load."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SIZE

from flawline.cameras import open_camera
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError, EngineOptions, missing, open_engine
from flawline.runtime.outputs import Judgement, Output
from flawline.runtime.station.pipeline import run_stream
from flawline.runtime.station.tally import Tally

FAKES = Path(__file__).resolve().parents[1] / "fakes"
START_S = 90.0
WAIT_S = 60.0
COUNT = 40  # frames before the server is killed, without it, and after it is back

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing("kserve") is not None, reason=str(missing("kserve"))),
    pytest.mark.skipif(
        shutil.which("mlserver") is None,
        reason="needs mlserver on the PATH, in an environment of its own with onnxruntime",
    ),
]


class MlServer:
    """A process of MLServer that serves the graph of a bundle on 127.0.0.1."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.folder = folder
        self.port, http, metrics = free_ports(3)
        self.uri = f"grpc://127.0.0.1:{self.port}/part"
        folder.mkdir()
        shutil.copy(FAKES / "mlserver_runtime.py", folder)
        settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False}
        ports = {"grpc_port": self.port, "http_port": http, "metrics_port": metrics}
        (folder / "settings.json").write_text(json.dumps({**settings, **ports}))
        image = {"name": "image", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}
        score = {"name": "score", "datatype": "FP32", "shape": [-1]}
        anomaly_map = {"name": "map", "datatype": "FP32", "shape": [-1, SIZE, SIZE]}
        model = {
            "name": "part",
            "implementation": "mlserver_runtime.OnnxGraph",
            "parameters": {"uri": str(bundle.model()), "version": "1"},
            "inputs": [image],
            "outputs": [score, anomaly_map],
        }
        (folder / "model-settings.json").write_text(json.dumps(model))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                ["mlserver", "start", "."],
                cwd=self.folder,
                # The packages of this process are not those of the server.
                env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def not_ready(server: MlServer, bundle: Bundle) -> EngineError | None:
    """Return why the server does not serve the bundle yet."""
    try:
        open_engine(bundle, "kserve", EngineOptions(server=server.uri)).close()
    except EngineError as error:
        return error
    return None


@pytest.fixture
def server(bundle: Bundle, tmp_path: Path) -> Iterator[MlServer]:
    server = MlServer(bundle, tmp_path / "server")
    server.start()
    deadline = time.monotonic() + START_S
    while (fault := not_ready(server, bundle)) is not None:
        log = (tmp_path / "server/log.txt").read_text()
        assert time.monotonic() < deadline, f"{fault}\n{log[-4000:]}"
        assert server.process is not None
        assert server.process.poll() is None, log[-4000:]
        time.sleep(0.2)
    yield server
    server.kill()


def test_the_scores_are_those_of_the_reference(server: MlServer, bundle: Bundle) -> None:
    images = np.random.default_rng(5).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    reference = open_engine(bundle, "onnxruntime", EngineOptions(threads=1))
    engine = open_engine(bundle, "kserve", EngineOptions(server=server.uri))
    expected = reference(images)
    found = engine(images)
    assert np.abs(found[0] - expected[0]).max() <= bundle.manifest.score_tolerance
    assert np.abs(found[1] - expected[1]).max() <= bundle.manifest.map_tolerance
    engine.close()
    reference.close()


class Witness(Output):
    """Notes each frame with its verdict; kills and restarts the server, and ends the stream."""

    def __init__(self, server: MlServer, stop: threading.Event) -> None:
        self.server = server
        self.stop = stop
        self.seen: list[tuple[int, str, str | None]] = []
        self.restarted = 0
        self.deadline = time.monotonic() + START_S + WAIT_S

    def write(self, judgement: Judgement) -> None:
        verdict = judgement.verdict
        self.seen.append((judgement.frame.index, verdict.name, verdict.reason))
        if len(self.seen) == COUNT:
            self.server.kill()
        elif not self.restarted and self.lost() >= COUNT:
            self.restarted = len(self.seen)
            self.server.start()
        judged_again = self.restarted and all(reason is None for *_, reason in self.seen[-COUNT:])
        if judged_again or time.monotonic() > self.deadline:
            self.stop.set()

    def lost(self) -> int:
        return sum((reason or "").startswith(self.server.uri) for *_, reason in self.seen)

    def finish(self, summary: Any) -> None:
        self.summary = dict(summary)


def test_every_frame_of_an_outage_is_named(server: MlServer, bundle: Bundle) -> None:
    stop = threading.Event()
    output = Witness(server, stop)
    options = EngineOptions(server=server.uri)
    uri = "synthetic://?fps=20&width=64&height=64&every_frame=1&queue=100"
    with open_camera(uri) as camera, Detector(bundle, "kserve", options) as detector:
        run_stream(camera, detector, [output], None, stop, Tally())
    assert [index for index, *_ in output.seen] == list(range(len(output.seen)))
    assert all(reason is None for *_, reason in output.seen[-COUNT:]), output.seen[-1]
    lost = [(name, reason) for _, name, reason in output.seen if reason is not None]
    assert output.summary["unjudged"] == len(lost)
    outage = 0
    for name, reason in lost:
        assert name == "unjudged"
        # On a machine that is busy, images may be dropped as well.
        assert reason.startswith(server.uri) or "images were waiting already" in reason
        outage += reason.startswith(server.uri)
    assert outage >= COUNT - 1
