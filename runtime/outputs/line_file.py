"""Text lines that an output writes to a file or to stdout, each at once."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from io import FileIO, UnsupportedOperation
from pathlib import Path

from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.console import discard_stdout
from flawline.runtime.outputs import OutputError
from flawline.runtime.outputs.pipe_writer import PipeWriter, is_pipe
from flawline.runtime.station.notices import FrameNotices

STDOUT = ""


class LineFile:
    """A file that the first line empties, or stdout.

    `output` is the name of the output in messages, and `target` a path, or empty for stdout. Raises
    OutputError if the file cannot be opened.

    A line that a file cannot take, as on a full disk, is lost as a whole and counted, and the next
    one is tried again. A pipe or a stdout that takes no line is an error: its reader is gone. One
    that is not read is waited for, until `stop_waiting` is called.
    """

    def __init__(self, output: str, target: str) -> None:
        self._output = output
        self._target = target
        self._failed = False
        self._started = False
        self._notices = FrameNotices()
        self._lost = 0
        self._fault: str | None = None
        # The last failure that `require_all` has not raised yet.
        self._failure: OSError | None = None
        self._file: FileIO | None = None
        self._is_regular = False
        self._pipe: PipeWriter | None = None
        if target == STDOUT:
            self._pipe = _pipe_of_stdout()
        else:
            try:
                # Not opened with "w", so that a start that fails leaves an older file as it is.
                # Without a buffer, where a line that was not written would wait for the next one.
                self._file = Path(target).open("ab", buffering=0)  # noqa: SIM115
                self._is_regular = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
                if is_pipe(self._file.fileno()):
                    self._pipe = PipeWriter(self._file.fileno())
            except OSError as error:
                raise self._error(error) from error
            self._require_no_other_writer()

    def _require_no_other_writer(self) -> None:
        """Lock a file, of which another output or process would empty and mix the lines."""
        assert self._file is not None
        if not self._is_regular:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise OutputError(
                f"output {self._output}: another output or process writes {self._target} already; "
                f"choose another file"
            ) from None
        except OSError:
            # Some network file systems have no locks.
            pass

    def stop_waiting(self) -> None:
        """Give up soon if nothing reads the lines. Any thread and a signal handler may call it."""
        if self._pipe is not None:
            self._pipe.stop_waiting()

    def totals(self) -> dict[str, int]:
        """Return how many lines a file could not take; stdout has no such count."""
        if self._file is None:
            return {}
        return {"not_written": self._lost}

    @property
    def fault(self) -> str | None:
        """Why the last line was lost; None if it was not."""
        return self._fault

    def print(self, line: str) -> bool:
        """Write a line; return False if it is lost. Raises OutputError for stdout."""
        # After a failure the reader of the lines is gone or the disk is full; it was reported once.
        if self._failed:
            return False
        try:
            self._write(line)
        except OSError as error:
            if self._file is None or isinstance(error, (BrokenPipeError, TimeoutError)):
                self._fail(error)
            self._lost += 1
            self._failure = error
            self._fault = reason_of(error)
            self._notices.warn("lost", f"{self._error(error)}; inspection continues", "lines")
            return False
        self._fault = None
        return True

    def require_all(self) -> None:
        """Raise OutputError, but once only, if lines are lost. Called after the last one."""
        if self._failure is None:
            return
        error = self._failure
        self._failure = None
        raise self._error(error, f"{self._lost} lines ") from error

    def _write(self, line: str) -> None:
        """Write a line, to a regular file as a whole or not at all. Raises OSError."""
        if self._pipe is not None:
            self._write_to_pipe(line, self._pipe)
            return
        if self._file is None:
            print(line, flush=True)
            return
        if not self._started and self._is_regular:
            # A device has nothing to be emptied.
            self._file.truncate(0)
        self._started = True
        before = self._file.seek(0, 2) if self._is_regular else 0
        rest = f"{line}\n".encode("utf-8", "backslashreplace")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            if self._is_regular:
                self._file.truncate(before)
            raise

    def _write_to_pipe(self, line: str, pipe: PipeWriter) -> None:
        encoding = "utf-8"
        if self._file is None:
            # What other code has printed comes first.
            sys.stdout.flush()
            encoding = sys.stdout.encoding
        pipe.write(f"{line}\n".encode(encoding, "backslashreplace"))

    def _fail(self, error: OSError) -> None:
        """Give up. The command ends without a message for a closed pipe: see run_command."""
        self._failed = True
        if self._file is None:
            discard_stdout()
        if isinstance(error, BrokenPipeError):
            raise error
        raise self._error(error) from error

    def _error(self, error: OSError, before: str = "") -> OutputError:
        name = self._target
        if name == STDOUT:
            name = "stdout"
        if isinstance(error, TimeoutError):
            return OutputError(
                f"output {self._output}: the stream was to end, and nothing reads {name}, so that "
                f"lines are lost; end its reader, or choose another output"
            )
        return OutputError(
            f"output {self._output}: {before}cannot be written to {name} ({reason_of(error)}); "
            f"{remedy_of(error, 'output')}"
        )

    def close(self) -> None:
        """Close the file. May be called again. Raises OutputError."""
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError as error:
            raise self._error(error) from error


def _pipe_of_stdout() -> PipeWriter | None:
    """Return what writes to stdout if that may block; None for a file and within a program."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, UnsupportedOperation):
        return None
    return PipeWriter(descriptor) if is_pipe(descriptor) else None
