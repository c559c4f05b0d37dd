"""Python packages that overwrite or hide each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from flawline.extras import pip_command
from flawline.runtime.console import first_line
from flawline.runtime.doctor.finding import Finding, ok, problem
from flawline.runtime.doctor.machine import Machine, Subject
from flawline.runtime.environment import OPENCV_WHEELS, onnxruntime_conflict, opencv_conflict

OLDEST_OPENCV = (4, 8)


def check_packages(machine: Machine, subject: Subject) -> Iterator[Finding]:
    """Find two OpenCVs, an OpenCV that hides that of pip, and other packages in one folder."""
    opencv = opencv_conflict()
    for conflict in (opencv, onnxruntime_conflict()):
        if conflict is not None:
            text, _, remedy = conflict.partition("; ")
            yield problem(text, remedy)
    if opencv is None:
        yield from _check_opencv()


def _check_opencv() -> Iterator[Finding]:
    try:
        import cv2
    except Exception as error:
        # A library that it is linked to may be missing, or it was made for another numpy.
        names = [name for name, _ in _wheels()] or [OPENCV_WHEELS[0]]
        yield problem(
            f"OpenCV cannot be imported ({first_line(error)})",
            f"{pip_command('uninstall', '-y', *names)} && "
            f"{pip_command('install', OPENCV_WHEELS[0])}",
        )
        return
    found = Path(str(cv2.__file__)).resolve()
    yield from compare_opencv(found, str(cv2.__version__), _wheels())


def compare_opencv(
    found: Path, version: str, wheels: Sequence[tuple[str, Path]]
) -> Iterator[Finding]:
    """Compare the OpenCV that is imported with the wheels and the folders that hold them."""
    number = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    hidden = [name for name, folder in wheels if not found.is_relative_to(folder / "cv2")]
    if hidden:
        yield problem(
            f"import cv2 takes {found.parent} (OpenCV {version}), which hides the package "
            f"{', '.join(hidden)}, as where that of JetPack comes first",
            "remove the other one, for example with sudo apt remove python3-opencv, and set no "
            "PYTHONPATH",
        )
    elif number < OLDEST_OPENCV:
        yield problem(
            f"OpenCV {version} of {found.parent} is too old",
            pip_command("install", "opencv-python-headless"),
        )
    else:
        yield ok(f"OpenCV {version} of {found.parent}")


def _wheels() -> list[tuple[str, Path]]:
    """Return the installed wheels of OpenCV with the folder that each of them is in."""
    wheels = []
    for name in OPENCV_WHEELS:
        folder = _location(name)
        if folder is not None:
            wheels.append((name, folder))
    return wheels


def _location(name: str) -> Path | None:
    """Return the folder that a package is installed in; None if it is not installed."""
    try:
        return Path(str(distribution(name).locate_file(""))).resolve()
    except PackageNotFoundError:
        return None
