"""Starts the RTSP server of tests, and reads the time in its pictures."""

from __future__ import annotations

import signal
import subprocess
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SERVER = Path(__file__).with_name("rtsp_server.py")
# The Python of Debian, which has the bindings of GStreamer. It is not that of the environment.
PYTHON = "/usr/bin/python3"
CHECK = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer
Gst.init(None)
for name in sys.argv[1:]:
    assert Gst.ElementFactory.find(name), f"GStreamer has no {name}"
"""
ELEMENTS = ("appsrc", "x264enc", "rtph264pay", "jpegenc", "rtpjpegpay")
H265 = ("x265enc", "h265parse", "rtph265pay")
PACKAGES = (
    "apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-base "
    "gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly"
)
BITS = 48
COLUMNS = 16
BLOCK_ROWS = 16


@cache
def missing(elements: tuple[str, ...] = ELEMENTS) -> str | None:
    """Say why there is no server with these elements on this machine, or None if there is one."""
    command = [PYTHON, "-c", CHECK, *elements]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"needs an RTSP server ({error}); {PACKAGES}"
    if done.returncode:
        return f"needs an RTSP server ({done.stderr.strip().splitlines()[-1]}); {PACKAGES}"
    return None


class RtspServer:
    """A running server. `port` is its port, and stays the same when it is started again."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [PYTHON, str(SERVER), "--port", str(self.port), *self.arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def address(self, userinfo: str = "", path: str = "line") -> str:
        return f"rtsp://{userinfo}127.0.0.1:{self.port}/{path}"

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def rtsp_server(*arguments: str) -> Iterator[RtspServer]:
    """Run a server in a block; skip the test where there is none."""
    reason = missing()
    if reason is None and "h265" in arguments:
        reason = missing(H265)
    if reason is not None:
        pytest.skip(reason)
    server = RtspServer(*arguments)
    try:
        yield server
    finally:
        server.resume()
        server.kill()


def shown_time(image: np.ndarray[Any, Any]) -> float | None:
    """Return the time in a picture, in seconds; None if its checksum is wrong.

    It then shows parts of several pictures.
    """
    block = image.shape[1] // COLUMNS
    number = 0
    for bit in range(BITS):
        row, column = divmod(bit, COLUMNS)
        level = image[row * BLOCK_ROWS + BLOCK_ROWS // 2, column * block + block // 2, 1]
        if level > 128:
            number |= 1 << bit
    milliseconds = number % 2**32
    if zlib.crc32(milliseconds.to_bytes(4, "big")) & 0xFFFF != number >> 32:
        return None
    return milliseconds / 1000


def true_age(image: np.ndarray[Any, Any]) -> float:
    """Return the seconds since the server drew a picture, from the time in it."""
    shown = shown_time(image)
    assert shown is not None, "the picture shows parts of several"
    return time.monotonic() - shown
