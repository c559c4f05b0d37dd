"""What libjpeg reports while OpenCV decodes a JPEG.

libjpeg replaces damaged data by grey pixels, and reports it only as a line on the standard error
stream of the C library. OpenCV passes on neither the line nor a return value. For the time of one
decoding, that stream is therefore replaced by one in memory. The file descriptor 2 and Python's
sys.stderr stay as they are, and lines of other libraries are printed afterwards.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import cv2
import numpy as np

# jerror.h of libjpeg: the start of every warning that concerns the pixels.
REPORTS = (
    "Corrupt JPEG data",
    "Premature end of JPEG file",
    "Inconsistent progression sequence",
    "Invalid SOS parameters",
    "Application transferred too many scanlines",
)
STDERR = 2
# The variable that holds the stream: a constant in C libraries other than these two.
VARIABLES = {"glibc": "stderr", "Darwin": "__stderrp"}


class _Recorder:
    """A C stream in memory that takes the place of the C library's `stderr`.

    It is created once and never closed, since another thread may still be writing to it when the
    former stream is back in place.
    """

    def __init__(self, variable: str) -> None:
        self._library = ctypes.CDLL(None)
        self._variable = ctypes.c_void_p.in_dll(self._library, variable)
        self._text = ctypes.c_void_p()
        self._size = ctypes.c_size_t()
        self._taken = 0
        self._lock = threading.Lock()
        create = self._library.open_memstream
        create.restype = ctypes.c_void_p
        create.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._stream = create(ctypes.byref(self._text), ctypes.byref(self._size))
        if not self._stream:
            raise OSError("the C library cannot create a stream in memory")
        self._flush = self._library.fflush
        self._flush.argtypes = [ctypes.c_void_p]

    @contextmanager
    def recording(self) -> Iterator[list[str]]:
        lines: list[str] = []
        with self._lock:
            former = self._variable.value
            self._variable.value = self._stream
            try:
                yield lines
            finally:
                self._variable.value = former
                lines += self._take()

    def _take(self) -> list[str]:
        """Return the lines that were written since the last call."""
        self._flush(self._stream)
        size = self._size.value
        if size == self._taken or self._text.value is None:
            return []
        text = ctypes.string_at(self._text.value + self._taken, size - self._taken)
        self._taken = size
        return text.decode(errors="replace").splitlines()


@cache
def _recorder() -> _Recorder | None:
    variable = VARIABLES.get(platform.libc_ver()[0]) or VARIABLES.get(platform.system())
    if variable is None:
        return None
    try:
        return _Recorder(variable)
    except (OSError, ValueError, AttributeError):
        return None


@contextmanager
def recorded_reports() -> Iterator[list[str]]:
    """Record libjpeg's reports of damage in a list, which is complete when the block ends.

    Other threads that decode a JPEG wait meanwhile.
    """
    reports: list[str] = []
    recorder = _recorder()
    if recorder is None:
        yield reports
        return
    with recorder.recording() as lines:
        yield reports
    for line in lines:
        if line.startswith(REPORTS):
            reports.append(line)
        else:
            _print_to_stderr(line)


def _print_to_stderr(line: str) -> None:
    # A closed stream is no reason to fail.
    with suppress(OSError):
        os.write(STDERR, f"{line}\n".encode())


@cache
def reports_are_recorded() -> bool:
    """Tell whether damage in a JPEG is reported here, by decoding one that was cut off."""
    grey = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    data = cv2.imencode(".jpg", grey)[1].tobytes()
    cut = np.frombuffer(data[: len(data) * 3 // 4] + b"\xff\xd9", np.uint8)
    with recorded_reports() as reports:
        image = cv2.imdecode(cut, cv2.IMREAD_GRAYSCALE)
    return image is None or bool(reports)
