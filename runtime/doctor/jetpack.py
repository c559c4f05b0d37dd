"""JetPack: the system of a Jetson, and the library for its GPU that it brings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from flawline.runtime.doctor.finding import Finding, note, ok, problem
from flawline.runtime.doctor.machine import Machine, Subject

RELEASE_FILE = "etc/nv_tegra_release"
RELEASE = re.compile(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*(\d+)(?:\.(\d+))?")


@dataclass(frozen=True)
class JetPack:
    """The L4T release from which on a JetPack is installed, as (major, minor), and its TensorRT."""

    since: tuple[int, int]
    name: str
    tensorrt: str


# From NVIDIA's release notes; the oldest one first.
RELEASES = (
    JetPack((35, 0), "JetPack 5", "8.5"),
    JetPack((36, 2), "JetPack 6.0", "8.6"),
    JetPack((36, 4), "JetPack 6.1 or 6.2", "10.3"),
    JetPack((38, 0), "JetPack 7.0 or 7.1", "10.13"),
    JetPack((39, 0), "JetPack 7.2", "10.16"),
)
OLDEST_SERVED = (36, 0)


def check_jetpack(machine: Machine, subject: Subject) -> Iterator[Finding]:
    """Name JetPack and the library that it brings for the GPU. Nothing on other machines."""
    model = machine.jetson
    if model is None:
        return
    release = release_of(machine)
    if release is None:
        yield note(
            f"{model}, whose JetPack is not known here",
            f"in a container, mount /{RELEASE_FILE} of the host to have it checked",
        )
        return
    shown = f"{model}, L4T {'.'.join(map(str, release))}"
    found = [jetpack for jetpack in RELEASES if jetpack.since <= release[:2]]
    if not found or release < OLDEST_SERVED:
        yield problem(
            f"{shown}, is older than JetPack 6, and its Python is too old",
            "install JetPack 6 or 7",
        )
        return
    jetpack = found[-1]
    yield ok(f"{shown}: {jetpack.name}, with TensorRT {jetpack.tensorrt}")


def release_of(machine: Machine) -> tuple[int, ...] | None:
    """Return the L4T release of a Jetson, such as (36, 4, 3); None if it is not known."""
    match = RELEASE.search(machine.read(RELEASE_FILE) or "")
    if match is None:
        return None
    return tuple(int(part) for part in match.groups() if part is not None)
