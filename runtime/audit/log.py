"""Appending to an audit log: one writer at a time, each line on disk before its change is made."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flawline import FlawlineError
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.audit.entry import (
    NO_CHANGE,
    REPAIR,
    Entry,
    State,
    hash_of,
    new_entry,
    read_entry,
    to_line,
)
from flawline.runtime.files import synchronise_folder

AUDIT_LOG = "audit.jsonl"
LOCK_S = 10.0  # seconds that another process may hold the lock
PAUSE_S = 0.02
BLOCK = 1 << 16
# A line holds a calibration.json. A file may be full of zeros after a power failure.
LONGEST_LINE = 1 << 24  # bytes
# What the first line of every log begins with.
LOG_START = b'{"time": "'


class AuditError(FlawlineError):
    """An audit log cannot be read or written, or its lines do not fit together."""


@contextmanager
def open_log(path: Path) -> Iterator[AuditLog]:
    """Open an audit log for the block, in which no other process writes it; create it if absent.

    Raises AuditError.
    """
    with locked(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, fcntl.LOCK_EX) as descriptor:
        yield AuditLog(path, descriptor)


@contextmanager
def locked(path: Path, flags: int, lock: int) -> Iterator[int]:
    """Open a file with a lock of `flock`, and give its descriptor. Raises AuditError."""
    limit = time.monotonic() + LOCK_S
    try:
        descriptor = _open_locked(path, flags, lock, limit)
    except OSError as error:
        raise AuditError(
            f"audit log {path}: cannot be opened ({reason_of(error)}); {remedy_of(error)}"
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_locked(path: Path, flags: int, lock: int, limit: float) -> int:
    while True:
        # Opening a pipe would otherwise wait for its writer.
        descriptor = os.open(path, flags | os.O_NONBLOCK, 0o644)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            _lock(path, descriptor, lock, limit)
            if status.st_size == 0 and flags & os.O_CREAT:
                # Of root's: the user of a service appends to it later.
                folder = path.parent.stat()
                with suppress(PermissionError):
                    os.fchown(descriptor, folder.st_uid, folder.st_gid)
            # While this process waited, another one may have replaced the folder of the bundle.
            with suppress(FileNotFoundError):
                if os.path.samestat(status, path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(path: Path, descriptor: int, lock: int, limit: float) -> None:
    """Wait for the lock until `limit`, on the monotonic clock. Raises OSError and AuditError."""
    while True:
        try:
            fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= limit:
                raise AuditError(
                    f"audit log {path}: another process has held its lock for {LOCK_S:g} s; "
                    f"end that process: fuser {path}"
                ) from None
        time.sleep(PAUSE_S)


class AuditLog:
    """An audit log that this process alone writes; see `open_log`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def last(self, *what: str) -> Entry | None:
        """Return the last entry of one of these kinds; None if there is none.

        Without a kind it is the last one that states a change. Raises AuditError.
        """
        try:
            return last_entry(self._descriptor, *what)
        except OSError as error:
            raise self._error(error) from error

    def append(
        self, what: str, old: State | None, new: State | None, note: str | None = None
    ) -> None:
        """Append a line and wait until it is on disk. Raises AuditError.

        A last line that was cut off is kept, and a line after it says so.
        """
        try:
            if not _is_log(self._descriptor):
                raise AuditError(
                    f"audit log {self.path}: is another file, which has no entry in its first "
                    f"line; move it away, or choose another file"
                )
            if self._end_cut_line():
                text = "the line before this one was cut off while it was written"
                self._append(REPAIR, None, None, text)
            self._append(what, old, new, note)
        except OSError as error:
            raise self._error(error) from error

    @contextmanager
    def change(
        self,
        what: str,
        old: State | None,
        new: State | None,
        actual: Callable[[], State | None],
        note: str | None = None,
    ) -> Iterator[None]:
        """Append a line, and make the change in the block.

        If the block fails, a further line says so, with the state that `actual` returns then.
        Raises AuditError, before the block, if the line cannot be written.
        """
        self.append(what, old, new, note)
        try:
            yield
        except BaseException as error:
            # If this line cannot be written either, the next entry notes the difference.
            with suppress(AuditError):
                self.append(what, new, actual(), f"failed: {error}")
            raise

    def _append(self, what: str, old: State | None, new: State | None, note: str | None) -> None:
        size = os.fstat(self._descriptor).st_size
        previous = None
        for line in lines_backwards(self._descriptor, size):
            previous = hash_of(line)
            break
        data = to_line(new_entry(what, old, new, previous, note)) + b"\n"
        try:
            os.lseek(self._descriptor, size, os.SEEK_SET)
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except OSError:
            # A part of a line is no entry.
            with suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise
        if size == 0:
            # The name of a new file is on disk only when its folder is.
            with suppress(OSError):
                synchronise_folder(self.path.parent)

    def _end_cut_line(self) -> bool:
        """End the last line if it has no line break; return whether that made it no entry."""
        size = os.fstat(self._descriptor).st_size
        if size == 0 or os.pread(self._descriptor, 1, size - 1) == b"\n":
            return False
        os.pwrite(self._descriptor, b"\n", size)
        for line in lines_backwards(self._descriptor, size + 1):
            return read_entry(line) is None
        return False

    def _error(self, error: OSError) -> AuditError:
        return AuditError(
            f"audit log {self.path}: cannot be written ({reason_of(error)}), so that nothing is "
            f"changed; {remedy_of(error)}"
        )


def _is_log(descriptor: int) -> bool:
    """Tell whether a file begins as an audit log does; the first line may be cut off."""
    start = os.pread(descriptor, len(LOG_START), 0)
    return LOG_START.startswith(start)


def last_entry(
    descriptor: int, *what: str, accept: Callable[[Entry], bool] = lambda entry: True
) -> Entry | None:
    """Return the last entry of an open log of one of these kinds that is accepted, or None.

    Without a kind it is the last one that states a change. Raises OSError.
    """
    size = os.fstat(descriptor).st_size
    for line in lines_backwards(descriptor, size):
        entry = read_entry(line)
        if entry is None:
            continue
        is_wanted = entry.what in what if what else entry.what not in NO_CHANGE
        if is_wanted and accept(entry):
            return entry
    return None


def lines_backwards(descriptor: int, size: int) -> Iterator[bytes]:
    """Yield the lines of the first `size` bytes of a file without line breaks, the last first.

    Raises OSError, also for one of more than LONGEST_LINE bytes.
    """
    if size > 0 and os.pread(descriptor, 1, size - 1) == b"\n":
        size -= 1
    elif size == 0:
        return
    # The parts of a line whose beginning was not read yet, the last one first.
    parts: list[bytes] = []
    while size > 0:
        start = max(0, size - BLOCK)
        first, *lines = os.pread(descriptor, size - start, start).split(b"\n")
        if lines:
            lines[-1] = _joined(lines[-1], parts)
            parts = []
            yield from reversed(lines)
        parts.append(first)
        size = start
        if len(parts) * BLOCK > LONGEST_LINE:
            raise OSError(errno.EINVAL, f"it has a line of more than {LONGEST_LINE} bytes")
    yield _joined(b"", parts)


def _joined(first: bytes, parts: list[bytes]) -> bytes:
    return first + b"".join(reversed(parts))
