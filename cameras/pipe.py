"""Reading a pipe, such as stdin, in a way that can be ended while it waits for data."""

from __future__ import annotations

import os
import select


class Pipe:
    """A file object for PyAV that reads a file descriptor, which it does not close.

    The end of the pipe, and a call of `stop()` from any thread or a signal handler, are the end of
    the file.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._wake, self._stopper = os.pipe()
        self._stopped = False

    def read(self, size: int) -> bytes:
        """Return what there is, up to `size` bytes; wait if there is nothing yet."""
        select.select([self._descriptor, self._wake], [], [])
        if self._stopped:
            return b""
        return os.read(self._descriptor, size)

    def stop(self) -> None:
        """End the file."""
        if not self._stopped:
            self._stopped = True
            # It stays readable, because nothing reads it.
            os.write(self._stopper, b"x")

    def close(self) -> None:
        """Release what this object opened, after the last call of `read`. May be called again."""
        self._stopped = True
        for descriptor in (self._wake, self._stopper):
            if descriptor >= 0:
                os.close(descriptor)
        self._wake = -1
        self._stopper = -1
