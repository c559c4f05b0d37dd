"""Memory of the machine and of the control group, and the shared memory."""

from __future__ import annotations

import os
from collections.abc import Iterator

from flawline.runtime.doctor.finding import Finding, note, ok, problem
from flawline.runtime.doctor.machine import Machine, Subject

MIB = 1 << 20
GIB = 1 << 30
# A stream with an engine on the CPU holds 200 to 600 MB.
LEAST_FREE = 512 * MIB
LITTLE_FREE = 1 * GIB
# Docker's default is 64 MiB. Libraries of cameras and of training put frames there.
LITTLE_SHARED = 128 * MIB


def check_memory(machine: Machine, subject: Subject) -> Iterator[Finding]:
    """Compare the memory that is left with what a stream needs."""
    values = _meminfo(machine)
    free = values.get("MemAvailable")
    total = values.get("MemTotal")
    if free is not None and total is not None:
        text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB of memory are free"
        yield _judge(free, text, "end other programs, or use a machine with more memory")
    limit = machine.read_number("sys/fs/cgroup/memory.max")
    used = machine.read_number("sys/fs/cgroup/memory.current")
    if limit is not None:
        left = limit - (used or 0)
        text = f"the control group leaves {left / GIB:.1f} of {limit / GIB:.1f} GiB of memory"
        yield _judge(left, text, "raise the limit: docker run --memory, or MemoryMax=")
    yield _shared(machine)


def _judge(free: int, text: str, remedy: str) -> Finding:
    if free < LEAST_FREE:
        return problem(f"{text}, which is too little for a stream", remedy)
    if free < LITTLE_FREE:
        return note(text, remedy)
    return ok(text)


def _shared(machine: Machine) -> Finding:
    try:
        status = os.statvfs(machine.path("dev/shm"))
    except OSError:
        return note(
            "there is no shared memory in /dev/shm, which some cameras and a training need",
            "mount a tmpfs there",
        )
    size = status.f_frsize * status.f_blocks
    text = f"shared memory in /dev/shm: {size / MIB:.0f} MiB"
    if size < LITTLE_SHARED:
        return note(text, "let a container have more: docker run --shm-size=1g")
    return ok(text)


def _meminfo(machine: Machine) -> dict[str, int]:
    """Return the values of /proc/meminfo in bytes."""
    values = {}
    for line in (machine.read("proc/meminfo") or "").splitlines():
        key, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            values[key] = 1024 * int(words[0])
    return values
