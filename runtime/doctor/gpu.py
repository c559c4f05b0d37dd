"""NVIDIA GPUs, their driver, and what keeps a process from using them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from flawline.runtime.doctor.finding import Finding, note, ok, problem, split_remedy
from flawline.runtime.doctor.machine import Machine, Subject

PCI_DEVICES = "sys/bus/pci/devices/*/vendor"
NVIDIA = "0x10de"
# The beginnings of the PCI classes of VGA and 3D controllers.
DISPLAY = ("0x0300", "0x0302")
DRIVER_FILE = "proc/driver/nvidia/version"
DRIVER = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)")
QUERY = (
    "nvidia-smi",
    "--query-gpu=name,temperature.gpu,clocks_event_reasons.hw_thermal_slowdown,"
    "clocks_event_reasons.sw_thermal_slowdown",
    "--format=csv,noheader",
)
FIELDS = 4


def check_gpu(machine: Machine, subject: Subject) -> Iterator[Finding]:
    """Say which GPU and driver there are, and why the driver cannot be used."""
    from flawline.runtime.engines.cuda import driver_missing

    present = has_gpu(machine)
    version = driver_version(machine)
    if not present and version is None and machine.jetson is None:
        yield ok("there is no NVIDIA GPU; the engines for CPUs are used")
        return
    missing = driver_missing()
    if missing is None:
        yield from _driver(version)
        yield from _slowed_down(machine)
        return
    reason, remedy = split_remedy(missing)
    if machine.is_container:
        remedy = "start the container with --gpus all, or on a Jetson with --runtime nvidia"
    elif version is None and machine.jetson is None:
        remedy = "install the driver, for example with sudo ubuntu-drivers install, and restart"
    yield problem(f"the NVIDIA GPU cannot be used: {reason}", remedy or "install the driver")
    yield from _forbidden(machine)


def has_gpu(machine: Machine) -> bool:
    """Whether an NVIDIA GPU is on the PCI bus; that of a Jetson is not."""
    for vendor in machine.glob(PCI_DEVICES):
        if machine.read(vendor) != NVIDIA:
            continue
        kind = machine.read(vendor.replace("/vendor", "/class")) or ""
        if kind.startswith(DISPLAY):
            return True
    return False


def driver_version(machine: Machine) -> str | None:
    """Return the version of the driver's kernel module; None if it is not loaded."""
    match = DRIVER.search(machine.read(DRIVER_FILE) or "")
    return None if match is None else match[1]


def supported_cuda() -> int:
    """Return the CUDA version that the driver supports, such as 12080. Raises what CUDA raises."""
    from flawline.runtime.engines.cuda import libcuda
    from flawline.runtime.engines.cuda.base import check

    (number,) = check(libcuda.load_libcuda(), "cuDriverGetVersion")
    return int(number)


def _driver(version: str | None) -> Iterator[Finding]:
    from flawline.runtime.engines.cuda import gpu_name

    number = supported_cuda()
    driver = "driver" if version is None else f"driver {version}"
    yield ok(f"{gpu_name()}, {driver}, CUDA up to {number // 1000}.{number % 1000 // 10}")


def _slowed_down(machine: Machine) -> Iterator[Finding]:
    for line in (machine.run(QUERY) or "").splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != FIELDS:
            continue
        name, temperature, *reasons = fields
        # Older drivers, and GPUs without a sensor, answer with other texts.
        if "Active" in reasons:
            yield problem(
                f"{name} is slowed down now, at {temperature} °C", "give the GPU more air"
            )


def _forbidden(machine: Machine) -> Iterator[Finding]:
    """Name the device files that this user may not open."""
    for name in machine.glob("dev/nvidia[0-9]*"):
        if not os.access(machine.path(name), os.R_OK | os.W_OK):
            yield note(
                f"this user may not open /{name}",
                "add the user to the group of the file: sudo usermod -aG video $USER, and log in "
                "again",
            )
