"""What libjpeg reports while OpenCV decodes a JPEG.

libjpeg replaces damaged data by grey pixels, and reports it only as a line on `stderr`, the
standard error stream of the C library. OpenCV passes on neither the line nor a return value. While
an image is decoded, the variable `stderr` of the C library therefore points to a stream of ours.
The file descriptor 2 and Python's sys.stderr stay as they are.

The variable is shared by all threads, so these rules keep it safe:

- A lock lets one thread decode at a time. It is held across a fork, so that a child process never
  starts with the exchanged stream or with a lock that nothing releases.
- The stream is unbuffered, writes to a file in memory and is never closed. A thread that has read
  the variable just before it is restored still writes to a valid stream.
- What is not a report of libjpeg is written to the former stream, unchanged. What arrives after the
  decoding is written with the next one, or when the process ends.
- libjpeg in a thread of another library may report into the stream. Then an image is rejected that
  is not damaged. The reverse cannot happen.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import cv2
import numpy as np

# jerror.h of libjpeg: the start of every warning that concerns the pixels.
REPORTS = (
    b"Corrupt JPEG data",
    b"Premature end of JPEG file",
    b"Inconsistent progression sequence",
    b"Invalid SOS parameters",
    b"Application transferred too many scanlines",
    b"Unknown Adobe color transform code",
)
LOST_REPORT = "the report of the decoder could not be stored"
# The variable that holds the stream: a constant in C libraries other than these two.
VARIABLES = {"glibc": "stderr", "Darwin": "__stderrp"}
UNBUFFERED = 2  # _IONBF of stdio.h, in both


class _Recorder:
    """A C stream that takes the place of the C library's `stderr`."""

    def __init__(self, variable: str) -> None:
        self._library = _c_library()
        self._variable = ctypes.c_void_p.in_dll(self._library, variable)
        self._former = self._variable.value
        self._lock = threading.Lock()
        self._create_stream()

    def _create_stream(self) -> None:
        self._taken = 0
        self._file = _file_in_memory()
        self._stream = self._library.fdopen(self._file, b"a")
        if not self._stream:
            raise OSError("the C library cannot create a stream")
        self._library.setvbuf(self._stream, None, UNBUFFERED, 0)

    @contextmanager
    def recording(self) -> Iterator[list[str]]:
        reports: list[str] = []
        with self._lock:
            current = self._variable.value
            # Equal where the exception of a signal handler came between two of these lines.
            if current != self._stream:
                self._former = current
            try:
                self._variable.value = self._stream
                yield reports
            finally:
                self._variable.value = self._former
                reports += self._take()

    def _take(self) -> list[str]:
        """Return libjpeg's reports since the last call, and pass on what others wrote."""
        reports = []
        for line in self._new_text().splitlines(keepends=True):
            if line.startswith(REPORTS):
                reports.append(line.decode(errors="replace").strip())
            elif self._former:
                self._library.fwrite(line, 1, len(line), self._former)
                self._library.fflush(self._former)
        if self._library.ferror(self._stream):
            reports.append(LOST_REPORT)
        return reports

    def _new_text(self) -> bytes:
        size = os.fstat(self._file).st_size
        if size == self._taken:
            return b""
        text = os.pread(self._file, size - self._taken, self._taken)
        self._taken += len(text)
        return text

    def finish(self) -> None:
        """Pass on what arrived after the last recording."""
        with self._lock:
            self._take()

    def before_fork(self) -> None:
        """Wait until no thread is recording, and let none start."""
        self._lock.acquire()

    def after_fork(self) -> None:
        """Let threads record again."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Continue with a file that is not shared with the parent process."""
        self._create_stream()
        self._lock.release()


def _c_library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    stream = ctypes.c_void_p
    library.fdopen.restype = stream
    library.fdopen.argtypes = [ctypes.c_int, ctypes.c_char_p]
    library.setvbuf.argtypes = [stream, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t]
    library.fwrite.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, stream]
    library.fflush.argtypes = [stream]
    library.ferror.argtypes = [stream]
    return library


def _file_in_memory() -> int:
    """Create an empty file without a name; return its descriptor, which is never closed."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("reports of libjpeg")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _create_recorder() -> _Recorder | None:
    """Create the recorder of this process; None where the C library does not allow it."""
    variable = VARIABLES.get(platform.libc_ver()[0]) or VARIABLES.get(platform.system())
    if variable is None:
        return None
    try:
        recorder = _Recorder(variable)
    except (OSError, ValueError, AttributeError):
        return None
    atexit.register(recorder.finish)
    os.register_at_fork(
        before=recorder.before_fork,
        after_in_parent=recorder.after_fork,
        after_in_child=recorder.after_fork_in_child,
    )
    return recorder


# Created with the module, because two of them in two threads would replace each other's stream.
_RECORDER = _create_recorder()


@contextmanager
def recorded_reports() -> Iterator[list[str]]:
    """Record libjpeg's reports of damage in a list, which is complete when the block ends.

    Other threads that decode a JPEG wait meanwhile.
    """
    if _RECORDER is None:
        yield []
        return
    with _RECORDER.recording() as reports:
        yield reports


@cache
def reports_are_recorded() -> bool:
    """Tell whether damage in a JPEG is reported here, by decoding one that was cut off."""
    grey = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    data = cv2.imencode(".jpg", grey)[1].tobytes()
    cut = np.frombuffer(data[: len(data) * 3 // 4] + b"\xff\xd9", np.uint8)
    with recorded_reports() as reports:
        image = cv2.imdecode(cut, cv2.IMREAD_GRAYSCALE)
    return image is None or bool(reports)
