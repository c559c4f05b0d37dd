"""What to give instead of a camera that cannot be opened."""

from __future__ import annotations

import re
import stat
from pathlib import Path

NETWORK = ("rtmp", "http", "https", "udp", "rtp", "srt", "tcp")
USB = ("v4l2", "v4l", "uvc", "webcam", "dshow", "camera", "device")
MACHINE_VISION = ("gigev", "gev", "genicam", "gentl", "u3v", "usb3vision", "aravis", "harvesters")
PYLON = ("pylon", "pypylon")
NUMBER = re.compile(r"(?:usb:|cam:?)?(\d+)")


def hint_for_scheme(scheme: str) -> str | None:
    """Return a hint for a scheme that no camera has; None where the list of schemes says enough."""
    if scheme in NETWORK:
        return (
            "of network streams, those of rtsp:// and rtsps:// are read; many cameras give one as "
            "well, or record the stream as a video file"
        )
    if scheme in USB:
        return "for a USB camera give usb://0 or /dev/video0"
    if scheme in MACHINE_VISION:
        return "for a machine-vision camera give gige://SERIAL?cti=FILE, or basler://SERIAL"
    if scheme in PYLON:
        return "for a Basler camera give basler://SERIAL"
    return None


def hint_for_missing_path(path: str) -> str:
    """Return a hint for a path that does not exist."""
    if path == "-":
        return "for a video from stdin give video://-"
    number = NUMBER.fullmatch(path)
    if number is not None:
        return f"for a USB camera give usb://{number[1]}"
    return "check the path"


def hint_for_special_file(path: Path) -> str:
    """Return what a path is that is neither a file nor a folder, with a hint."""
    if stat.S_ISFIFO(path.stat().st_mode):
        return "is a pipe, which is not read; write the images or the video to a file"
    if stat.S_ISSOCK(path.stat().st_mode):
        return "is a socket, which is not read; write the images or the video to a file"
    return "is a device, and no camera; for a USB camera give usb://0 or /dev/video0"
