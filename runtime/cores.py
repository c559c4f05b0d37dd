"""The CPU cores that this process may use, which may be fewer than the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
# Folders of the CPU controller of version 1, which differ between distributions.
VERSION_1 = ("cpu", "cpu,cpuacct")
# More threads than this many per core only wait for each other.
MAX_THREADS_PER_CORE = 4


def allowed_cores() -> int:
    """Return how many CPU cores this process may use, at least 1.

    They are limited by the CPU affinity (`taskset`, the cpuset of a container) and by the CPU quota
    of its cgroups (`docker run --cpus`), which is rounded up.
    """
    cores = _affinity()
    quota = cpu_quota()
    if quota is None:
        return cores
    return max(1, min(cores, math.ceil(quota)))


def default_threads() -> int | None:
    """Return the number of threads for a library that would use every core of the machine.

    It is None if this process may use them all: the library then chooses by itself, for example one
    thread per physical core.
    """
    allowed = allowed_cores()
    if allowed < (os.cpu_count() or 1):
        return allowed
    return None


def max_threads() -> int:
    """Return the largest number of threads that a user may ask for."""
    return MAX_THREADS_PER_CORE * allowed_cores()


def cpu_quota(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float | None:
    """Return the CPU quota of this process in cores, or None if there is none.

    The smallest quota counts, because the cgroups above its own limit the process, too.
    """
    quotas = []
    for folder in _cgroup_folders(cgroups, own):
        quota = _quota(folder)
        if quota is not None:
            quotas.append(quota)
    return min(quotas, default=None)


def _affinity() -> int:
    # Not every operating system has an affinity.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_folders(cgroups: Path, own: Path) -> list[Path]:
    """Return the folders of the cgroups of this process and of all cgroups above them."""
    folders = []
    for line in _read(own).splitlines():
        # Number, controllers and path of a cgroup; other systems may have other lines.
        fields = line.split(":", 2)
        if len(fields) != 3:
            continue
        controllers = fields[1]
        roots = []
        if not controllers:
            roots.append(cgroups)
        elif "cpu" in controllers.split(","):
            roots += [cgroups / folder for folder in VERSION_1]
        for root in roots:
            folder = root / fields[2].strip("/")
            folders.append(folder)
            while folder != root:
                folder = folder.parent
                folders.append(folder)
    return folders


def _quota(folder: Path) -> float | None:
    """Read the quota of one cgroup, in cores: both versions limit microseconds per period."""
    # Version 2 has both numbers in one file, and "max" for no limit.
    words = _read(folder / "cpu.max").split()
    if not words:
        # Version 1 has -1 for no limit.
        words = _read(folder / "cpu.cfs_quota_us").split()
        words += _read(folder / "cpu.cfs_period_us").split()
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        return None
    quota = int(words[0])
    period = int(words[1])
    if quota == 0 or period == 0:
        return None
    return quota / period


def _read(path: Path) -> str:
    """Return the text of a file of the kernel; empty if this machine does not have it."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
