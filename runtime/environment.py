"""Installed versions for provenance, and a combination of packages that breaks silently."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flawline import __version__
from flawline.extras import pip_command

OPENCV_WHEELS = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
# Builds of ONNX Runtime, which install the same folder as well.
ONNXRUNTIME_WHEELS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-migraphx",
    "onnxruntime-training",
)
# Packages whose version can change a score, in training, export, decoding or inference.
PACKAGES = (
    "numpy",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
    "tensorrt-rtx-cu12",
    "cuda-bindings",
    "pycuda",
    "torch",
    "onnx",
    "timm",
    "FrEIA",
    "tifffile",
    "av",
    *OPENCV_WHEELS,
)


def versions() -> dict[str, str]:
    """Return the versions of all installed packages that shape the numbers.

    Maps the name of the package to its version, for provenance.
    """
    installed = {
        "flawline": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    for name in PACKAGES:
        number = _version(name)
        if number is not None:
            installed[name] = number
    return installed


def opencv_conflict() -> str | None:
    """Name the OpenCV wheels that overwrite each other's files, with the remedy.

    All OpenCV wheels install the folder cv2. Returns None if there is at most one.
    """
    return _conflict("OpenCV", OPENCV_WHEELS)


def onnxruntime_conflict() -> str | None:
    """Name the wheels of ONNX Runtime that overwrite each other's files, as `opencv_conflict`."""
    return _conflict("ONNX Runtime", ONNXRUNTIME_WHEELS)


def _conflict(library: str, names: Sequence[str]) -> str | None:
    # The wheel that was installed last wins, except for the files that only the other one has.
    wheels = [name for name in names if _version(name) is not None]
    if len(wheels) < 2:
        return None
    return (
        f"{len(wheels)} {library} wheels are installed and overwrite each other "
        f"({' '.join(wheels)}); run: {pip_command('uninstall', '-y', *wheels)} && "
        f"{pip_command('install', names[0])}"
    )


def quiet_opencv() -> None:
    """Let OpenCV log errors only: its warnings about a camera would hide Flawline's message."""
    # Imported here, because the doctor says what is wrong with an OpenCV that cannot be imported.
    import cv2

    # The function moved in OpenCV 5.
    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(2)
    else:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)


def cpu_name() -> str:
    """Return the processor's name and its number of threads, as benchmarks name their device."""
    name = "unknown CPU"
    # platform.processor() is empty or unspecific on Linux.
    for line in _cpu_info():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return f"{name}, {os.cpu_count()} threads"


def cpu_identity() -> str:
    """Return `cpu_name` and a hash of the instructions that the CPU has.

    Virtual machines hide the model's name, and some hide instructions that an engine would use.
    """
    for line in _cpu_info():
        key, _, features = line.partition(":")
        # The name on x86, and the one on Arm.
        if key.strip() in ("flags", "Features"):
            digest = hashlib.sha256(" ".join(sorted(features.split())).encode()).hexdigest()
            return f"{cpu_name()}, features {digest[:8]}"
    return cpu_name()


def _cpu_info() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
