"""USB cameras: which paths are cameras, and why one cannot be used."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from fakes.v4l2 import PATH, SimulatedCamera, connect

from flawline.cameras import CameraError, open_camera, v4l2
from flawline.cameras import v4l2_calls as calls
from flawline.cameras.usb import Usb, UsbOptions


def test_a_usb_camera_that_is_not_there_is_reported_at_once() -> None:
    with pytest.raises(CameraError, match="ls /dev/video"):
        open_camera("usb:///dev/video63")


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
    connect(SimulatedCamera(), monkeypatch)
    for path in (str(camera_link), f"file://{camera_link}", "/dev/null"):
        camera = open_camera(f"{path}?width=640&fps=30")
        assert isinstance(camera, Usb)
        assert camera.source == f"usb://{path.removeprefix('file://')}"
        assert camera._options == UsbOptions(width=640, fps=30)
    with pytest.raises(CameraError, match="width must be at least 1"):
        open_camera(f"{camera_link}?width=0")
    with pytest.raises(CameraError, match=r"'gain' is unknown; known options: .*pixel"):
        open_camera(f"{camera_link}?gain=12")


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
        (errno.EBUSY, r"names it\), and open the camera only once in this one"),
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


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (calls.CAPTURE, None),
        (calls.CAPTURE_PLANES, None),
        (0, "this device file of a camera gives no images"),
    ],
)
def test_a_device_that_opens_is_asked_what_it_gives(
    kind: int, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = SimulatedCamera(kind=kind)
    connect(camera, monkeypatch)
    problem = v4l2.problem_of(PATH)
    if message is None:
        assert problem is None
        assert camera.opened[0].requests == [calls.QUERYCAP, calls.REQBUFS]
    else:
        assert (problem or "").startswith(message)
    assert not camera.opened[0].is_open


def test_a_camera_that_another_program_uses_is_named_as_such(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    camera = SimulatedCamera()
    uri = connect(camera, monkeypatch)
    camera.owner = "another program"
    with pytest.raises(CameraError, match="another program uses this camera; end that program"):
        open_camera(uri)
    camera.owner = None
    with open_camera(uri) as waiting:
        camera.owner = "another program"
        with pytest.raises(CameraError, match=r"^camera usb://\S+: another program uses this"):
            next(iter(waiting))


def test_what_is_no_camera_is_refused_before_the_first_frame(tmp_path: Path) -> None:
    (tmp_path / "part.png").write_bytes(b"image")
    with pytest.raises(CameraError, match=r"is no device file; list the cameras"):
        open_camera(f"usb://{tmp_path}/part.png")
    with pytest.raises(CameraError, match=r"camera usb:///dev/null: is no camera; list the"):
        open_camera("usb:///dev/null")


def test_a_camera_that_is_gone_before_the_first_frame_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    camera = SimulatedCamera()
    with open_camera(connect(camera, monkeypatch)) as opened:
        camera.unplug()
        with pytest.raises(CameraError, match="no camera is connected to this device file"):
            next(iter(opened))
