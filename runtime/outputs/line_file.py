"""Text lines that an output writes to a file or to stdout; each is flushed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.console import discard_stdout
from flawline.runtime.outputs import OutputError

STDOUT = ""


class LineFile:
    """A file that the first line empties, or stdout.

    `output` is the name of the output in messages, and `target` a path, or empty for stdout. Raises
    OutputError if the file cannot be opened.
    """

    def __init__(self, output: str, target: str) -> None:
        self._output = output
        self._target = target
        self._failed = False
        self._started = False
        self._file: TextIO | None = None
        if target != STDOUT:
            try:
                # Not opened with "w", so that a start that fails leaves an older file as it is.
                self._file = Path(target).open("a", encoding="utf-8")  # noqa: SIM115
            except OSError as error:
                raise self._error(error) from error

    @property
    def failed(self) -> bool:
        """Whether a line could not be written, so that no more are."""
        return self._failed

    def print(self, line: str) -> None:
        """Write a line. Raises OutputError for the first one that cannot be written."""
        # After a failure the reader of the lines is gone or the disk is full; it was reported once.
        if self._failed:
            return
        try:
            self._start()
            print(line, file=self._file or sys.stdout, flush=True)
        except OSError as error:
            self._failed = True
            if self._file is None:
                discard_stdout()
            if isinstance(error, BrokenPipeError):
                # The command ends without a message: see run_command.
                raise
            raise self._error(error) from error

    def _start(self) -> None:
        """Empty the file before its first line; a device or a pipe has nothing to be emptied."""
        if self._started:
            return
        self._started = True
        if self._file is not None and Path(self._target).is_file():
            self._file.truncate(0)

    def _error(self, error: OSError) -> OutputError:
        name = self._target
        if name == STDOUT:
            name = "stdout"
        return OutputError(
            f"output {self._output}: cannot be written to {name} ({reason_of(error)}); "
            f"{remedy_of(error, 'output')}"
        )

    def close(self) -> None:
        """Close the file. May be called again. Raises OutputError."""
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError as error:
            if not self._failed:
                raise self._error(error) from error
