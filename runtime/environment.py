"""What is installed here: versions for provenance, and the one combination that breaks silently."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cv2

from flawline import __version__

OPENCV_WHEELS = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)


def versions() -> dict[str, str]:
    """Of Flawline, Python and the packages that decide about numbers, where they are installed."""
    found = {
        "flawline": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    for name in ("numpy", "onnxruntime", "openvino", "torch", "onnx", *OPENCV_WHEELS):
        if (installed := _version(name)) is not None:
            found[name] = installed
    return found


def opencv_conflict() -> str | None:
    """Two OpenCV wheels share the folder cv2 and overwrite each other's files; which ones, and the remedy."""
    wheels = [name for name in OPENCV_WHEELS if _version(name) is not None]
    if len(wheels) < 2:
        return None
    names = " ".join(wheels)
    return (
        f"{len(wheels)} OpenCV wheels are installed and overwrite each other ({names}); mend it: "
        f"pip uninstall -y {names} && pip install opencv-python-headless"
    )


def quiet_opencv() -> None:
    """Let OpenCV log errors only: its warnings about a camera would bury our one line. The call moved in OpenCV 5."""
    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(2)
    else:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor and how many threads it shows, as a benchmark's row names its device."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        "unknown CPU",
    )
    return f"{name}, {os.cpu_count()} threads"
