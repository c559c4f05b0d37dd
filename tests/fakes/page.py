"""A client of the live page, and judgements that it shows."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from flawline.cameras import Camera, Frame
from flawline.runtime.outputs import Judgement
from flawline.runtime.regions import Region, Regions
from flawline.runtime.verdict import Verdict

TIMEOUT_S = 20.0
ADDRESS = re.compile(rb"the live page is at http://127\.0\.0\.1:(\d+)/")
REGIONS = Regions((Region((8, 6, 20, 12), 240, 140.0, (12, 10)),), 1)


@dataclass(frozen=True)
class Answer:
    """Status, headers by lower-case name, and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int,
    path: str,
    method: str = "GET",
    body: bytes | Mapping[str, Any] | None = None,
    **headers: str,
) -> Answer:
    """Send one request to a server of this machine; `_` in the name of a header is a hyphen."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(body, Mapping):
        body = json.dumps(body).encode()
        given.setdefault("content-type", "application/json")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, given)
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, response.read())
    finally:
        connection.close()


class Watcher:
    """Reads the events of the page from a socket of its own."""

    def __init__(self, port: int, receive_buffer: int | None = None) -> None:
        self._socket = socket.socket()
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(TIMEOUT_S)
        self._socket.connect(("127.0.0.1", port))
        request = f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
        self._socket.sendall(request.encode())
        self._read = b""

    def next(self, name: str) -> Any:
        """Return the content of the next event of this name."""
        start = f"event: {name}\ndata: ".encode()
        while True:
            before, found, after = self._read.partition(start)
            data, ended, rest = after.partition(b"\n\n")
            if found and ended:
                self._read = rest
                return json.loads(data)
            received = self._socket.recv(65_536)
            if not received:
                raise ConnectionError(f"the page ended the events before one called {name}")
            self._read = (before[-64:] if not found else before) + found + after + received

    def close(self) -> None:
        self._socket.close()


class Belt(Camera):
    """A live camera that gives no frames itself; tests write what was judged."""

    live = True

    def __init__(self, name: str | None = None, knows_parts: bool = False) -> None:
        super().__init__()
        self.name = name
        self.source = "belt://"
        self._knows_parts = knows_parts

    @property
    def knows_parts(self) -> bool:
        return self._knows_parts

    def __iter__(self) -> Any:
        return iter(())


def judged(
    score: float, threshold: float = 100.0, review: float | None = 60.0, **fields: Any
) -> Judgement:
    """Return a frame with this score, an image, a map and a region."""
    anomaly_map = np.full((64, 64), score, np.float32)
    verdict = Verdict(
        score,
        threshold,
        score > threshold,
        anomaly_map,
        {"prepare": 1.0, "infer": 9.0},
        None,
        review,
    )
    frame = Frame("belt", 0, np.full((48, 64, 3), min(255, int(score)), np.uint8))
    return Judgement(frame, verdict, 10.0, live=True, age=0.02, regions=REGIONS, **fields)


@contextmanager
def running_stream(*words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run `flawline stream` with a page, and give its process and the port of the page."""
    command = [sys.executable, "-m", "flawline", "stream", *words]
    stream = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert stream.stderr is not None
    try:
        port = 0
        while not port:
            line = stream.stderr.readline()
            assert line, "the stream ended"
            found = ADDRESS.search(line)
            port = 0 if found is None else int(found[1])
        yield stream, port
    finally:
        stream.kill()
        stream.wait()
        stream.stderr.close()
