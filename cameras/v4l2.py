"""Device files of Video4Linux: which paths are cameras, and why one cannot be used."""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import re
import stat
import struct
from pathlib import Path

LIST = "list the cameras with ls /dev/video* /dev/v4l/by-id/*"
NAME = re.compile(r"/dev/(video\d+|v4l/.+)")
# The device files of Video4Linux have this major number (Linux, admin-guide/devices.txt).
MAJOR = 81
# Requests and structures of linux/videodev2.h.
QUERYCAP = 0x80685600
QUERYCAP_SIZE = 104  # bytes of struct v4l2_capability
CAPABILITIES_AT = 84  # bytes before its fields `capabilities` and `device_caps`
CAN_CAPTURE = 0x00000001
CAN_CAPTURE_PLANES = 0x00001000
HAS_DEVICE_CAPABILITIES = 0x80000000
REQBUFS = 0xC0145608
REQUEST_FORMAT = "=5I"  # struct v4l2_requestbuffers: count, type, memory, and two that are unused
CAPTURE_BUFFERS = 1
CAPTURE_BUFFERS_OF_PLANES = 9
MAPPED_MEMORY = 1


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


def problem_of(device: str) -> str | None:
    """Return why a device file cannot be used, with the remedy; None if no reason is known.

    No image is taken.
    """
    try:
        if not stat.S_ISCHR(os.stat(device).st_mode):
            return f"is no device file; {LIST}"
        descriptor = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return _refusal(device, error)
    try:
        return _problem_of_open(device, descriptor)
    finally:
        os.close(descriptor)


def _refusal(device: str, error: OSError) -> str:
    """Say why a device file cannot be opened."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"there is no such device; connect the camera, and {LIST}"
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return "no camera is connected to this device file; check the cable, and connect it again"
    if error.errno == errno.EBUSY:
        return _busy(device)
    if error.errno == errno.EACCES:
        group = _group_of(device)
        return (
            f"this user may not open it; add the user to its group with "
            f"sudo usermod -aG {group} $USER, and log in again"
        )
    if error.errno == errno.EPERM:
        return f"this container may not open it; start the container with --device {device}"
    return f"cannot be opened ({error.strerror}); {LIST}"


def _busy(device: str) -> str:
    return f"another program uses this camera; end that program (fuser -v {device} names it)"


def _group_of(device: str) -> str:
    """Return the group that may open a device file, which is usually video."""
    try:
        return grp.getgrgid(os.stat(device).st_gid).gr_name
    except (KeyError, OSError):
        return "video"


def _problem_of_open(device: str, descriptor: int) -> str | None:
    capabilities = bytearray(QUERYCAP_SIZE)
    try:
        fcntl.ioctl(descriptor, QUERYCAP, capabilities)
    except OSError:
        return f"is no camera; {LIST}"
    of_hardware, of_device = struct.unpack_from("=2I", capabilities, CAPABILITIES_AT)
    flags = of_device if of_hardware & HAS_DEVICE_CAPABILITIES else of_hardware
    if flags & CAN_CAPTURE:
        buffers = CAPTURE_BUFFERS
    elif flags & CAN_CAPTURE_PLANES:
        buffers = CAPTURE_BUFFERS_OF_PLANES
    else:
        # A USB camera has a second device file, for metadata.
        return f"this device file of a camera gives no images; give another one, and {LIST}"
    # A request to free the buffers of this program, which has none, changes nothing. It is refused
    # where another program has buffers, and so the camera.
    request = bytearray(struct.pack(REQUEST_FORMAT, 0, buffers, MAPPED_MEMORY, 0, 0))
    try:
        fcntl.ioctl(descriptor, REQBUFS, request)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return _busy(device)
    return None
