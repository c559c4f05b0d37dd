"""USB cameras: which paths are cameras, why one cannot be used, and the calls of the driver."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest

from flawline.cameras import CameraError, open_camera, usb, v4l2
from flawline.cameras.usb import Usb, UsbOptions
from flawline.cameras.v4l2 import problem_of


def test_a_usb_camera_that_is_not_there_is_reported_at_once() -> None:
    with pytest.raises(CameraError, match="ls /dev/video"):
        open_camera("usb:///dev/video63")


class FakeCapture:
    """A stand-in for cv2.VideoCapture that records how it is used."""

    settings: ClassVar[list[tuple[int, float]]]
    released_by: ClassVar[list[str]]

    def __init__(self, device: int | str, backend: int) -> None:
        assert device == 2

    def isOpened(self) -> bool:
        return True

    def set(self, setting: int, value: float) -> None:
        self.settings.append((setting, value))

    def read(self) -> tuple[bool, np.ndarray]:
        return True, np.zeros((8, 8, 3), np.uint8)

    def release(self) -> None:
        self.released_by.append(threading.current_thread().name)


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> type[FakeCapture]:
    FakeCapture.settings = []
    FakeCapture.released_by = []
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(usb, "problem_of", lambda device: None)
    return FakeCapture


def test_usb_options_reach_the_driver_as_numbers(capture: type[FakeCapture]) -> None:
    camera = Usb("2", UsbOptions(width=1920, fps=30))
    assert not capture.settings
    assert next(iter(camera)).image is not None
    camera.close()
    assert capture.settings == [
        (cv2.CAP_PROP_BUFFERSIZE, 1),
        (cv2.CAP_PROP_FRAME_WIDTH, 1920),
        (cv2.CAP_PROP_FPS, 30),
    ]


def test_a_usb_camera_is_released_once_and_by_its_own_thread(capture: type[FakeCapture]) -> None:
    camera = Usb("2")
    next(iter(camera))
    threads = [threading.Thread(target=camera.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert capture.released_by == ["capture usb://2"]


# ---------------------------------------------------------------- paths of devices


@pytest.fixture
def camera_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A link as in /dev/v4l/by-id, to a device file that stands in for a camera's."""
    monkeypatch.setattr(v4l2, "MAJOR", os.major(os.stat("/dev/null").st_rdev))
    link = tmp_path / "usb-046d_HD_Pro-video-index0"
    link.symlink_to("/dev/null")
    return link


def test_a_device_file_is_a_camera_with_the_options_of_its_uri(
    camera_link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usb, "problem_of", lambda device: None)
    for path in (str(camera_link), f"file://{camera_link}", "/dev/null"):
        camera = open_camera(f"{path}?width=640&fps=30")
        assert isinstance(camera, Usb)
        assert camera.source == f"usb://{path.removeprefix('file://')}"
        assert camera._options == UsbOptions(width=640, fps=30)
    with pytest.raises(CameraError, match="width must be at least 1"):
        open_camera(f"{camera_link}?width=0")
    with pytest.raises(CameraError, match="'bits' is unknown; known options: width"):
        open_camera(f"{camera_link}?bits=12")


def test_a_camera_that_is_not_connected_is_named_as_one(tmp_path: Path) -> None:
    dangling = tmp_path / "front"
    dangling.symlink_to("/dev/video77")
    paths = ("/dev/video77", "/dev/v4l/by-id/usb-046d-video-index0", "usb://77", str(dangling))
    for path in paths:
        with pytest.raises(CameraError) as caught:
            open_camera(path)
        assert "there is no such device; connect the camera" in str(caught.value)
        assert "\n" not in str(caught.value)


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the operating system refuse to open device files."""

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EACCES, r"may not open it; add the user to its group with sudo usermod -aG \w+ "),
        (errno.EPERM, "this container may not open it; start the container with --device /dev"),
        (errno.EBUSY, "another program uses this camera; end that program "),
        (errno.ENODEV, "no camera is connected to this device file"),
        (errno.EIO, "cannot be opened .Input/output error.; list the cameras"),
    ],
)
def test_each_reason_has_its_own_message_and_remedy(
    number: int, message: str, camera_link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, number)
    with pytest.raises(CameraError, match=message) as caught:
        open_camera("/dev/null")
    assert str(caught.value).startswith("camera usb:///dev/null: ")
    assert "\n" not in str(caught.value)


class Driver:
    """Answers the requests of `problem_of` as a driver of Video4Linux does."""

    def __init__(self, of_hardware: int, of_device: int, busy: bool = False) -> None:
        self.capabilities = (of_hardware, of_device)
        self.busy = busy
        self.buffers: list[tuple[int, ...]] = []

    def ioctl(self, descriptor: int, request: int, content: bytearray) -> int:
        if request == v4l2.QUERYCAP:
            assert len(content) == 104
            struct.pack_into("=2I", content, 16 + 32 + 32 + 4, *self.capabilities)
            return 0
        assert request == v4l2.REQBUFS
        assert len(content) == 20
        self.buffers.append(struct.unpack("=5I", content))
        if self.busy:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return 0


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (Driver(0x85200001, 0x04200001), None),
        (Driver(0x04200001, 0), None),
        (Driver(0x84201000, 0x04201000), None),
        (Driver(0x85200001, 0x04200001, busy=True), "another program uses this camera"),
        (Driver(0x85200001, 0x04A00000), "this device file of a camera gives no images"),
    ],
)
def test_a_device_that_opens_is_asked_what_it_gives_and_whether_it_is_free(
    driver: Driver, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", driver.ioctl)
    problem = problem_of("/dev/null")
    if message is None:
        assert problem is None
        # No buffers are requested: only type and memory are given.
        assert driver.buffers[0][0] == 0
    else:
        assert (problem or "").startswith(message)


def test_what_is_no_camera_is_refused_before_the_first_frame(tmp_path: Path) -> None:
    (tmp_path / "part.png").write_bytes(b"image")
    with pytest.raises(CameraError, match=r"is no device file; list the cameras"):
        open_camera(f"usb://{tmp_path}/part.png")
    with pytest.raises(CameraError, match=r"camera usb:///dev/null: is no camera; list the"):
        open_camera("usb:///dev/null")


def test_a_camera_that_was_unplugged_says_so(
    capture: type[FakeCapture], monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = Usb("2")
    monkeypatch.setattr(usb, "problem_of", lambda device: f"{device} is gone")
    with pytest.raises(CameraError, match=r"^camera usb://2: /dev/video2 is gone$"):
        next(iter(camera))
