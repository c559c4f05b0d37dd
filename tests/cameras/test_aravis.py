"""Cameras through Aravis, on its simulated GigE Vision camera, over the loopback device."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
from fakes.aravis import DEBIAN, URI, WAIT_S, Simulator, is_whole, require_aravis
from fakes.copies import memory_per_block

from flawline.cameras import CameraError, aravis, missing, open_camera
from flawline.cameras.aravis import Aravis
from flawline.cameras.genicam_settings import GenicamOptions

require_aravis()


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    simulator = Simulator()
    simulator.wait_until_found()
    yield simulator
    simulator.stop()


@pytest.fixture
def found_once(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search for cameras once: that takes a second."""
    devices = aravis.find_devices()
    monkeypatch.setattr(aravis, "find_devices", lambda: devices)


def test_25_frames_per_second_come_without_loss(found_once: None) -> None:
    with open_camera(f"{URI}&fps=25&every_frame=1") as camera:
        frames = iter(camera)
        # The first one may have been on its way when the stream was opened.
        next(frames)
        before = camera.dropped
        indices = []
        for frame in islice(frames, 25):
            assert frame.image is not None
            assert is_whole(frame.image)
            indices.append(frame.index)
        assert camera.dropped == before
    assert indices == list(range(indices[0], indices[0] + 25))


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "bits"),
    [
        ("Mono8", np.uint8, (96, 128), 8),
        ("Mono16", np.uint16, (96, 128), 16),
        ("BayerRG8", np.uint8, (96, 128, 3), 8),
        ("RGB8", np.uint8, (96, 128, 3), 8),
    ],
)
def test_formats(
    name: str, dtype: type, shape: tuple[int, ...], bits: int, found_once: None
) -> None:
    with open_camera(f"aravis://SIM1?width=128&height=96&fps=100&pixel_format={name}") as camera:
        frame = next(iter(camera))
    assert frame.image is not None
    assert (frame.image.dtype, frame.image.shape, frame.bit_depth) == (dtype, shape, bits)


def test_a_frame_is_copied_once(found_once: None) -> None:
    camera = Aravis("SIM1", GenicamOptions(width=640, height=480, pixel_format="Mono8"))
    assert 1 <= memory_per_block(camera) < 1.1


@pytest.mark.usefixtures("patient_pulses")
def test_no_pulse_is_no_frame_and_every_pulse_is_one(found_once: None) -> None:
    with open_camera(f"{URI}&fps=100&trigger=software&stall=0.8&answer_s=20") as camera:
        assert isinstance(camera, Aravis)
        frames: list[Any] = []
        thread = threading.Thread(target=lambda: frames.extend(camera), daemon=True)
        thread.start()
        assert camera.wait_until_open()
        # Longer than the limit of a stall.
        thread.join(1.0)
        assert frames == []
        assert camera.reconnects == 0
        for _ in range(5):
            camera.pulse()
        camera.end_of_pulses()
        thread.join(WAIT_S)
    assert [frame.part for frame in frames] == ["1", "2", "3", "4", "5"]
    assert all(is_whole(frame.image) for frame in frames)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("aravis://other", r"no camera has this serial number or name; give aravis://SIM1 \(Fake"),
        (f"{URI}&offset_x=99999", "offset_x: OffsetX=99999 was refused: it must be from 0 to"),
        (f"{URI}&gain=3", "this camera has no Gain to write; leave it out"),
        ("aravis://SIM1?features=PixelFormat=Mono99", "'Mono99' not an entry$"),
        (f"{URI}&features=Width", "Width is not a command of this camera"),
    ],
)
def test_a_camera_that_cannot_be_opened_is_one_line(
    uri: str, message: str, found_once: None
) -> None:
    with open_camera(uri) as camera, pytest.raises(CameraError, match=message) as caught:
        next(iter(camera))
    assert "\n" not in str(caught.value)


def test_a_camera_that_is_open_already_is_one_line(found_once: None) -> None:
    with open_camera(f"{URI}&fps=100") as first, open_camera(URI) as second:
        next(iter(first))
        with pytest.raises(CameraError, match="is used by another program; close that program"):
            next(iter(second))
        assert next(iter(first)).image is not None


def test_a_camera_of_another_process_is_one_line(found_once: None) -> None:
    code = (
        f"import sys; sys.path.append({DEBIAN!r})\n"
        f"from flawline.cameras import open_camera\n"
        f"with open_camera({URI!r} + '&fps=100') as camera:\n"
        f"    for frame in camera: print(frame.index, flush=True)\n"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        try:
            first = int(other.stdout.readline())
            expected = pytest.raises(CameraError, match="is used by another program; close that")
            with open_camera(URI) as camera, expected:
                next(iter(camera))
            # The other one loses nothing by that.
            while int(other.stdout.readline()) < first + 20:
                assert other.poll() is None
        finally:
            other.kill()


def test_the_message_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gi", None)
    assert "apt install gir1.2-aravis-0.8" in (missing("aravis") or "")
