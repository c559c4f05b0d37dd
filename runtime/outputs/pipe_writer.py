"""Writes to a pipe or a terminal, whose reader may read nothing any more."""

from __future__ import annotations

import errno
import os
import select
import stat
import time

POLL_MS = 100
# Seconds that a reader has to go on, once the stream is to end.
END_S = 2.0


def is_pipe(descriptor: int) -> bool:
    """Tell whether a descriptor is a pipe, a socket or a device, to which writing may block."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)


class PipeWriter:
    """Writes to a descriptor, which stays that of the caller.

    It waits for the reader as long as that takes; after `stop_waiting`, which any thread and a
    signal handler may call, for END_S seconds at most.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)
        self._may_wait = True
        self._deadline: float | None = None

    def stop_waiting(self) -> None:
        """Let `write` fail soon if the reader reads nothing."""
        self._may_wait = False

    def write(self, data: bytes) -> None:
        """Write all of the data. Raises OSError, which is TimeoutError if nothing is read."""
        while data:
            self._wait_for_room()
            try:
                # So much does not block when there is room at all.
                written = os.write(self._descriptor, data[: select.PIPE_BUF])
            except BlockingIOError:
                continue
            data = data[written:]

    def _wait_for_room(self) -> None:
        while not self._room.poll(POLL_MS):
            if self._may_wait:
                continue
            now = time.monotonic()
            if self._deadline is None:
                self._deadline = now + END_S
            if now >= self._deadline:
                raise TimeoutError(errno.ETIMEDOUT, "nothing reads it")
