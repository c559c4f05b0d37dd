"""Videos from stdin: every frame, in order, and an end while the pipe is empty."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from flawline.cameras import CameraError, open_camera, video
from flawline.runtime.bundle import Bundle

av = pytest.importorskip("av", reason="needs the video extra")

ROOT = Path(__file__).resolve().parents[2]
COUNT = 40
WAIT_S = 10.0


def recording(container_format: str = "mpegts", codec: str = "libx264") -> bytes:
    """Return a video of COUNT frames, each brighter than the one before it."""
    data = io.BytesIO()
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    with av.open(data, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, pixel_format
        for index in range(COUNT):
            image = np.full((96, 128, 3), 20 + 5 * index, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts = index
            frame.time_base = Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return data.getvalue()


class Sender:
    """Writes into the pipe that the camera takes for stdin."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._threads: list[threading.Thread] = []

    def send(self, data: bytes, end: bool = True) -> None:
        def write() -> None:
            with open(self._descriptor, "wb", closefd=end) as file:
                file.write(data)

        thread = threading.Thread(target=write)
        thread.start()
        self._threads.append(thread)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sender]:
    reading, writing = os.pipe()
    monkeypatch.setattr(video, "STDIN", reading)
    sender = Sender(writing)
    yield sender
    sender.join()
    os.close(reading)


@pytest.mark.parametrize(
    ("container_format", "codec"),
    [
        ("mpegts", "libx264"),
        ("matroska", "libx264"),
        ("h264", "libx264"),
        ("mjpeg", "mjpeg"),
        ("matroska", "ffv1"),
        ("yuv4mpegpipe", "rawvideo"),
    ],
)
def test_every_frame_comes_in_its_order(container_format: str, codec: str, sender: Sender) -> None:
    sender.send(recording(container_format, codec))
    levels = []
    with open_camera("video://-") as camera:
        for frame in camera:
            assert frame.fault is None
            assert frame.source == "stdin"
            assert frame.index == len(levels)
            levels.append(float(frame.image.mean()))
    assert levels == pytest.approx([20 + 5 * index for index in range(COUNT)], abs=4)


def test_damage_is_found_as_in_a_file(sender: Sender, tmp_path: Path) -> None:
    data = bytearray(recording())
    # One packet of MPEG-TS, which has 188 bytes.
    middle = len(data) // 2 // 188 * 188
    data[middle + 4 : middle + 188] = bytes(184)
    path = tmp_path / "line.ts"
    path.write_bytes(data)
    sender.send(bytes(data))
    with open_camera("video://-") as camera:
        through_pipe = [(frame.index, frame.fault is None) for frame in camera]
    with open_camera(str(path)) as camera:
        from_file = [(frame.index, frame.fault is None) for frame in camera]
    assert through_pipe == from_file
    assert 0 < sum(is_whole for _, is_whole in from_file) < len(from_file)


def test_a_video_that_is_cut_off_ends(sender: Sender) -> None:
    data = recording()
    sender.send(data[: len(data) // 2])
    with open_camera("video://-") as camera:
        frames = list(camera)
    assert 0 < len(frames) < COUNT


@pytest.mark.parametrize("end", ["stop", "close"])
def test_another_thread_may_end_it_while_the_pipe_is_empty(end: str, sender: Sender) -> None:
    sender.send(recording(), end=False)
    with open_camera("video://-") as camera:
        frames = iter(camera)
        next(frames)
        timer = threading.Timer(0.2, getattr(camera, end))
        timer.start()
        # The pipe stays open, so that the decoder waits for more at its end.
        assert len(list(frames)) < COUNT
        timer.join(WAIT_S)
    camera.close()
    os.close(sender._descriptor)


def test_a_format_that_cannot_be_read_from_a_pipe_is_an_error(sender: Sender) -> None:
    sender.send(b"no video at all " * 100)
    with pytest.raises(CameraError, match="send MPEG-TS, Matroska, fragmented MP4"):
        open_camera("video://-")


def test_a_terminal_and_a_closed_stdin_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = os.openpty()
    monkeypatch.setattr(video, "STDIN", terminal)
    with pytest.raises(CameraError, match="stdin is a terminal; send a video into it"):
        open_camera("video://-")
    os.close(controller)
    os.close(terminal)
    with pytest.raises(CameraError, match="stdin is closed"):
        open_camera("video://-")


def test_a_dash_alone_is_explained() -> None:
    with pytest.raises(CameraError, match="for a video from stdin give video://-"):
        open_camera("-")


@pytest.mark.parametrize("is_file", [False, True])
def test_the_stream_command_judges_every_frame_of_stdin(
    is_file: bool, bundle: Bundle, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "flawline.runtime.infer_stream", "--bundle", str(bundle.path)]
    command += ["--camera", "video://-"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    options = {"capture_output": True, "env": environment, "check": True}
    if is_file:
        # Its index is at the end, where a pipe cannot be read first.
        path = tmp_path / "line.mp4"
        with open(path, "wb") as file:
            file.write(recording("mov"))
        with open(path, "rb") as file:
            done = subprocess.run(command, stdin=file, **options)
    else:
        done = subprocess.run(command, input=recording(), **options)
    *lines, end = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["index"] for line in lines] == list(range(COUNT))
    assert end["summary"]["frames"] == COUNT
    assert end["summary"]["dropped"] == 0
    assert end["summary"]["unjudged"] == 0
