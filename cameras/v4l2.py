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
        return f"this device file of a camera gives no images; give another one, and {LIST}"
    # A request to free the buffers of this program, which has none, changes nothing. It is refused
    # where another program has buffers, and so the camera.
    try:
        device.call(REQBUFS, RequestBuffers(count=0, type=kind, memory=MAPPED_MEMORY))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return reason_of(path, error)
    return None
