"""Folders that a stream reads and writes: permissions, free space, and whether they last."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.doctor.finding import Finding, note, ok, problem
from flawline.runtime.doctor.machine import Machine, Subject

GIB = 1 << 30
# A bundle with its plans takes 50 to 500 MB; pictures of rejected parts take gigabytes.
LEAST_FREE = GIB // 2
LITTLE_FREE = 5 * GIB
LEAST_FILES = 1000
# File systems whose content is lost when the machine starts again.
IN_MEMORY = ("tmpfs", "ramfs", "overlay")
FREE_SPACE = "free disk space, or choose another folder"


def check_folders(machine: Machine, subject: Subject) -> Iterator[Finding]:
    """Check the bundle, the folder of plans and the folders that results are written to."""
    bundle = subject.bundle
    if bundle is not None:
        yield from _readable(bundle)
        if subject.cache is None and _compiles():
            yield from _written(machine, bundle, "plans of engines")
    if subject.cache is not None:
        yield from _written(machine, subject.cache, "plans of engines")
    for folder in subject.folders:
        yield from _written(machine, folder, "results")


def _compiles() -> bool:
    """Whether an engine of this machine stores plans, next to the bundle if there is no cache."""
    from flawline.runtime.engines import ENGINES, engine_class, unusable_here

    return any(engine_class(name).compiles and unusable_here(name) is None for name in ENGINES)


def _readable(bundle: Path) -> Iterator[Finding]:
    try:
        names = os.listdir(bundle)
    except OSError as error:
        yield problem(f"{bundle} cannot be read ({reason_of(error)})", remedy_of(error))
        return
    closed = [name for name in sorted(names) if not os.access(bundle / name, os.R_OK)]
    if closed:
        yield problem(
            f"{bundle}: this user may not read {', '.join(closed)}",
            f"sudo chmod -R a+rX {bundle}",
        )


def _written(machine: Machine, folder: Path, purpose: str) -> Iterator[Finding]:
    """Try to write into a folder, or into the one that it would be created in."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        status = os.statvfs(existing)
    except OSError as error:
        yield problem(
            f"{purpose} cannot be written to {folder} ({reason_of(error)})", remedy_of(error)
        )
        return
    yield from judge_space(folder, purpose, status)
    kind = file_system(machine.read("proc/self/mountinfo") or "", existing.resolve())
    if kind in IN_MEMORY:
        yield note(
            f"{folder} is on a file system ({kind}) whose content is lost at the next start",
            "mount a disk or a volume there, or choose another folder",
        )


def judge_space(folder: Path, purpose: str, status: os.statvfs_result) -> Iterator[Finding]:
    """Judge the free space of a file system, and how many files it can take."""
    free = status.f_frsize * status.f_bavail
    text = f"{folder} for {purpose}: {free / GIB:.1f} GiB free"
    # Some file systems have no limit, and state 0 of 0.
    if status.f_files > 0 and status.f_favail < LEAST_FILES:
        yield problem(f"{folder}: only {status.f_favail} more files can be made", FREE_SPACE)
    if free < LEAST_FREE:
        yield problem(text, FREE_SPACE)
    elif free < LITTLE_FREE:
        yield note(text, FREE_SPACE)
    else:
        yield ok(text)


def file_system(mounts: str, folder: Path) -> str | None:
    """Return the kind of the file system that a folder is on, by the content of mountinfo."""
    best = ""
    kind = None
    for line in mounts.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split()
        if not separator or len(fields) < 5:
            continue
        # Spaces and line breaks of a path are written as octal numbers.
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        # Of several at the same place, the last one is seen.
        if folder.is_relative_to(point) and len(point) >= len(best):
            best = point
            kind = after.split()[0]
    return kind
