"""Device files of Video4Linux: which paths are cameras, and why one cannot be used."""

from __future__ import annotations

import errno
import grp
import os
import re
import stat
from pathlib import Path

from flawline.cameras.v4l2_calls import (
    MAPPED_MEMORY,
    REQBUFS,
    Device,
    RequestBuffers,
    kind_of_buffers,
)

LIST = "list the cameras with ls /dev/video* /dev/v4l/by-id/*"
NO_IMAGES = "this device file of a camera gives no images"
# What the driver of a Jetson calls a sensor at its CSI port, whose pictures are raw.
SENSOR = "vi-output"
NAMES = Path("/sys/class/video4linux")
NAME = re.compile(r"/dev/(video\d+|v4l/.+)")
# The device files of Video4Linux have this major number (Linux, admin-guide/devices.txt).
MAJOR = 81


def is_camera(path: Path) -> bool:
    """Tell whether a path is a camera's device file or a link to one, by its type or its name.

    The file need not exist, so that a camera that is not connected is reported as such.
    """
    if NAME.fullmatch(str(path)) or NAME.fullmatch(os.path.realpath(path)):
        return True
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) == MAJOR


def device_files(folder: Path = Path("/dev")) -> list[Path]:
    """Return the device files of cameras in a folder, by their numbers."""
    files = [path for path in folder.glob("video*") if path.name.removeprefix("video").isdecimal()]
    return sorted(files, key=lambda path: int(path.name.removeprefix("video")))


def sensors(names: Path = NAMES) -> list[str]:
    """Return the names of the device files that are sensors at the CSI port of a Jetson."""
    found = []
    for path in device_files(names):
        try:
            name = (path / "name").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if name.startswith(SENSOR):
            found.append(path.name)
    return found


def connected_cameras(folder: Path = Path("/dev"), names: Path = NAMES) -> list[str]:
    """Return a path for each camera that gives images, except for sensors of a Jetson.

    A path that stays the same at another port, or else at this port, is preferred.
    """
    links = [*folder.glob("v4l/by-id/*"), *folder.glob("v4l/by-path/*")]
    found = []
    for path in device_files(folder):
        if path.name in sensors(names) or problem_of(str(path)) is not None:
            continue
        stable = [str(link) for link in sorted(links) if link.resolve() == path.resolve()]
        found.append((stable or [str(path)])[0])
    return found


def problem_of(path: str) -> str | None:
    """Return why a device file cannot be used, with the remedy; None if no reason is known.

    No image is taken.
    """
    try:
        if not stat.S_ISCHR(os.stat(path).st_mode):
            return f"is no device file; {LIST}"
        device = Device(path)
    except OSError as error:
        return reason_of(path, error)
    try:
        return _problem_of_open(path, device)
    finally:
        device.close()


def reason_of(path: str, error: OSError) -> str:
    """Say why the driver refuses to open a device file or to start its stream."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"there is no such device; connect the camera, and {LIST}"
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return "no camera is connected to this device file; check the cable, and connect it again"
    if error.errno == errno.EBUSY:
        return (
            f"another program uses this camera; end that program (fuser -v {path} names it), and "
            f"open the camera only once in this one"
        )
    if error.errno == errno.EACCES:
        group = _group_of(path)
        return (
            f"this user may not open it; add the user to its group with "
            f"sudo usermod -aG {group} $USER, and log in again"
        )
    if error.errno == errno.EPERM:
        return f"this container may not open it; start the container with --device {path}"
    if error.errno == errno.ENOSPC:
        return (
            "the USB bus has too little bandwidth left for this stream; connect the camera to "
            "another USB controller, or give a smaller size, a lower fps or pixel_format=MJPG"
        )
    return f"cannot be opened ({error.strerror}); {LIST}"


def _group_of(path: str) -> str:
    """Return the group that may open a device file, which is usually video."""
    try:
        return grp.getgrgid(os.stat(path).st_gid).gr_name
    except (KeyError, OSError):
        return "video"


def _problem_of_open(path: str, device: Device) -> str | None:
    try:
        kind = kind_of_buffers(device)
    except OSError:
        return f"is no camera; {LIST}"
    if kind is None:
        # A USB camera has a second device file, for metadata.
        return f"{NO_IMAGES}; give another one, and {LIST}"
    # A request to free the buffers of this program, which has none, changes nothing. It is refused
    # where another program has buffers, and so the camera.
    try:
        device.call(REQBUFS, RequestBuffers(count=0, type=kind, memory=MAPPED_MEMORY))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return reason_of(path, error)
    return None
