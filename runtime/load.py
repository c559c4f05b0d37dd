"""How much of the CPU other processes use during a measurement.

A median hides single disturbances, but not a second program that computes all the time: a figure
that was measured beside one is slower than the machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

PROC_STAT = Path("/proc/stat")
# Indices of the counters of a CPU in /proc/stat: user, nice, system, irq, softirq, and steal, the
# time that the hypervisor gave to other machines. The counters after them are part of user time.
BUSY = (0, 1, 2, 5, 6, 7)
COUNTERS = 8
# The counters advance by hundredths of a second, so a shorter measurement says nothing.
SHORTEST_S = 0.5
# Above this share of other processes, a measurement is marked.
BUSY_ABOVE = 0.1
# The counters of a CPU must add up to the time that passed, within this factor. In some containers
# and virtual machines they are those of other CPUs, or never change.
PLAUSIBLE = 1.25


class CpuReading(NamedTuple):
    """Seconds since any fixed moment, summed over the CPUs that this process may use.

    `clock` is the time that passed, `busy` the time that the CPUs worked, `total` the time that
    they worked or were idle, and `own` the time that this process used.
    """

    clock: float
    cpus: int
    busy: float
    total: float
    own: float


def read_cpu(stat: Path = PROC_STAT) -> CpuReading | None:
    """Read the counters of the CPUs that this process may use.

    Returns None where the system does not state them, as outside Linux.
    """
    try:
        text = stat.read_text()
        cpus = os.sched_getaffinity(0)
    except (OSError, AttributeError):
        return None
    counted = busy_and_total(text, cpus)
    if counted is None:
        return None
    busy, total = counted
    hertz = os.sysconf("SC_CLK_TCK")
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return CpuReading(time.monotonic(), len(cpus), busy / hertz, total / hertz, own)


def busy_and_total(stat: str, cpus: Collection[int]) -> tuple[int, int] | None:
    """Return the busy and the total ticks of some CPUs from the text of /proc/stat.

    Returns None if one of the CPUs is not listed.
    """
    names = {f"cpu{number}" for number in cpus}
    found = 0
    busy = 0
    total = 0
    for line in stat.splitlines():
        name, *texts = line.split()
        if name not in names:
            continue
        counters = [int(text) for text in texts[:COUNTERS]]
        found += 1
        total += sum(counters)
        for index in BUSY:
            busy += counters[index]
    if found != len(names):
        return None
    return busy, total


def share_of_others(start: CpuReading | None, end: CpuReading | None) -> float | None:
    """Return the share of the CPU time that other processes used between two readings: 0 to 1.

    Returns None if that is not known: without both readings, after too short a time, and where
    the counters do not add up to the time that passed.
    """
    if start is None or end is None or start.cpus != end.cpus:
        return None
    seconds = end.clock - start.clock
    if seconds < SHORTEST_S:
        return None
    available = seconds * end.cpus
    total = end.total - start.total
    if not available / PLAUSIBLE <= total <= available * PLAUSIBLE:
        return None
    others = (end.busy - start.busy) - (end.own - start.own)
    return min(max(others / total, 0.0), 1.0)


def is_busy(share: float | None) -> bool:
    """Whether other processes disturbed a measurement, by their share of the CPU time."""
    return share is not None and share > BUSY_ABOVE
