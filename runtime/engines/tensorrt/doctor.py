"""The doctor's check of TensorRT: the library, its file for DLAs, and the driver that it needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import distributions

from flawline.extras import pip_command
from flawline.runtime.doctor.finding import Finding, ok, problem, split_remedy
from flawline.runtime.doctor.gpu import supported_cuda
from flawline.runtime.doctor.jetpack import release_of
from flawline.runtime.doctor.machine import Machine, Subject
from flawline.runtime.engines import EngineError
from flawline.runtime.engines.cuda import driver_missing
from flawline.runtime.engines.tensorrt.library import TENSORRT, TENSORRT_RTX, Library

# Packages of pip that hold a TensorRT for a major version of CUDA.
PACKAGE = re.compile(r"tensorrt(?:[-_]rtx)?[-_]cu(\d+)(?:[-_]libs|[-_]bindings)?")
# The oldest driver for each of them, from the release notes of CUDA.
DRIVERS = {11: "450", 12: "525", 13: "580"}
# What JetPack 6 needs for its TensorRT, and where it is. A container has empty files where nothing
# of the host was mounted.
DLA_FILE = "libnvdla_compiler.so"
DLA_FOLDERS = ("usr/lib/aarch64-linux-gnu/nvidia", "usr/lib/aarch64-linux-gnu/tegra")
NEEDS_DLA_FILE = 36  # major number of L4T
# The first L4T release for which a package of pip is made.
SERVED_BY_PIP = (39, 2, 2)


def check_library(machine: Machine, subject: Subject) -> Iterator[Finding]:
    """Load the libraries that are installed, and compare them with the driver and JetPack."""
    yield from _dla_file(machine)
    yield from _foreign_package(machine)
    found = False
    for library in (TENSORRT, TENSORRT_RTX):
        if library.missing() is None:
            found = True
            yield _load(library)
    yield from _compare_driver()
    if not found:
        yield ok("TensorRT is not installed")


def _load(library: Library) -> Finding:
    try:
        version = library.load().__version__
    except EngineError as error:
        reason, remedy = split_remedy(str(error))
        return problem(reason, remedy or "install it again")
    return ok(f"{library.engine} {version} can be loaded")


def _dla_file(machine: Machine) -> Iterator[Finding]:
    """Look for the file without which the TensorRT of JetPack 6 is not loaded."""
    release = release_of(machine)
    if machine.jetson is None or release is None or release[0] != NEEDS_DLA_FILE:
        return
    for folder in DLA_FOLDERS:
        path = machine.path(f"{folder}/{DLA_FILE}")
        if path.is_file() and path.stat().st_size > 0:
            return
    yield problem(
        f"{DLA_FILE} is missing, without which TensorRT is not loaded", remedy_for(DLA_FILE)
    )


def remedy_for(file: str) -> str:
    """Return what to do about a file that TensorRT does not find."""
    return dict(TENSORRT.remedies)[file]


def _foreign_package(machine: Machine) -> Iterator[Finding]:
    """Name a package of pip on a Jetson, which is not made for its GPU."""
    release = release_of(machine)
    if machine.jetson is None or release is None or release >= SERVED_BY_PIP:
        return
    names = sorted(name for name in packages() if "rtx" not in name)
    if names:
        yield problem(
            f"{', '.join(names)} of pip is not made for this Jetson, and hides its own TensorRT",
            f"{pip_command('uninstall', '-y', *names)}; {TENSORRT.install}",
        )


def packages() -> dict[str, int]:
    """Return the installed packages of pip that hold a TensorRT, with their version of CUDA."""
    found = {}
    for installed in distributions():
        name = str(installed.metadata["Name"] or "").lower()
        match = PACKAGE.fullmatch(name)
        if match is not None:
            found[name] = int(match[1])
    return found


def _compare_driver() -> Iterator[Finding]:
    """Compare the CUDA versions of the packages with the one that the driver supports."""
    if driver_missing() is not None:
        return
    yield from compare_cuda(packages(), supported_cuda())


def compare_cuda(installed: dict[str, int], supported: int) -> Iterator[Finding]:
    """Compare the CUDA versions of packages with that of the driver, such as 12080."""
    for name, needed in sorted(installed.items()):
        if needed <= supported // 1000:
            continue
        driver = DRIVERS.get(needed)
        newer = "a newer driver" if driver is None else f"driver {driver} or newer"
        yield problem(
            f"{name} needs CUDA {needed}, and the driver supports CUDA "
            f"{supported // 1000}.{supported % 1000 // 10}",
            f"install {newer}, or the package for CUDA {supported // 1000}",
        )
