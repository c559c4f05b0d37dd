"""Operating system, Python and Flawline."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator

from flawline import __version__
from flawline.runtime.doctor.finding import Finding, ok, problem
from flawline.runtime.doctor.machine import Machine, Subject

OLDEST_PYTHON = (3, 10)
TESTED_SYSTEM = "Linux"


def check_system(machine: Machine, subject: Subject) -> Iterator[Finding]:
    """Name the system; only Linux with a Python that is new enough is supported."""
    name = platform.platform()
    for line in (machine.read("etc/os-release") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            name = value.strip('"')
    where = ", in a container" if machine.is_container else ""
    text = f"Flawline {__version__}, Python {platform.python_version()}, {name}"
    yield ok(f"{text}, {machine.architecture}{where}")
    if platform.system() != TESTED_SYSTEM:
        yield problem(f"{platform.system()} is not supported", "use Linux")
    if sys.version_info[:2] < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        yield problem(
            f"Python {platform.python_version()} is older than {wanted}", f"use Python {wanted}"
        )
