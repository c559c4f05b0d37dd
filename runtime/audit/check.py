"""Checking an audit log: whether each line is an entry that follows the line before it."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.audit.entry import REPAIR, Entry, from_line, hash_of, read_entry
from flawline.runtime.audit.log import AuditError, locked
from flawline.runtime.files import open_regular, read_small
from flawline.runtime.strict_json import SchemaError

# A log has one line for each change that a person makes.
LARGEST_LOG = 1 << 30  # bytes


@dataclass(frozen=True)
class AuditReport:
    """What a log holds whose lines fit together.

    `hashes` are those of all lines, the last one at the end. `cut` is true if the last line was cut
    off while it was written; it is not among the others.
    """

    entries: tuple[Entry, ...]
    hashes: tuple[str, ...]
    cut: bool = False


def check_log(path: Path) -> AuditReport:
    """Check the chain of an audit log.

    Raises AuditError for the first line that does not fit, with its number and the reason, and for
    a file that cannot be read.
    """
    *lines, rest = _content(path).split(b"\n")
    entries = []
    hashes: list[str] = []
    for index, line in enumerate(lines):
        repaired = index + 1 < len(lines) and _is_repair(lines[index + 1])
        entry = _entry(path, index + 1, line, repaired)
        if entry is not None:
            previous = hashes[-1] if hashes else None
            if entry.previous != previous:
                _refuse(path, index + 1, "does not follow the line before it")
            entries.append(entry)
        hashes.append(hash_of(line))
    return AuditReport(tuple(entries), tuple(hashes), bool(rest))


def _content(path: Path) -> bytes:
    try:
        # A pipe would wait for its writer.
        open_regular(path).close()
        with locked(path, os.O_RDONLY | os.O_CLOEXEC, fcntl.LOCK_SH):
            return read_small(path, LARGEST_LOG)
    except OSError as error:
        raise AuditError(
            f"audit log {path}: cannot be read ({reason_of(error)}); {remedy_of(error)}"
        ) from error


def _entry(path: Path, number: int, line: bytes, repaired: bool) -> Entry | None:
    """Return the entry of a line; None if it was cut off and the next line says so."""
    try:
        return from_line(line)
    except SchemaError as error:
        if not repaired:
            _refuse(path, number, str(error))
    return None


def _is_repair(line: bytes) -> bool:
    entry = read_entry(line)
    return entry is not None and entry.what == REPAIR


def _refuse(path: Path, number: int, reason: str) -> NoReturn:
    raise AuditError(
        f"audit log {path}, line {number}: {reason}; lines were changed, removed or added from "
        f"there on: compare it with a copy, and move it away to begin a new one"
    )
