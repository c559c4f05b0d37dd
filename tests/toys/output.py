"""The smallest output: one line per judgement in a text file."""

from __future__ import annotations

from typing import ClassVar

from flawline.runtime.bundle import Bundle
from flawline.runtime.outputs import Judgement, Output, OutputError, OutputOptions


class TextFile(Output):
    """Appends "source accept" or "source reject"."""

    Options: ClassVar[type[OutputOptions]] = OutputOptions

    def __init__(self, target: str, options: OutputOptions, bundle: Bundle) -> None:
        try:
            self._file = open(target, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise OutputError(f"{target}: {error.strerror}; choose another file") from error

    def write(self, judgement: Judgement) -> None:
        answer = "reject" if judgement.verdict.anomalous else "accept"
        try:
            self._file.write(f"{judgement.frame.source} {answer}\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self._file.name}: {error.strerror}; free the disk") from error

    def close(self) -> None:
        self._file.close()
