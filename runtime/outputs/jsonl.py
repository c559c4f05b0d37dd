"""One JSON line per judgement, and the summary as the last line, on stdout or in a file."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from flawline.runtime.bundle import Bundle
from flawline.runtime.console import discard_stdout, printable
from flawline.runtime.outputs import Judgement, Output, OutputError, OutputOptions

STDOUT = ""


class JsonLines(Output):
    """`target` is a file, which is replaced, or empty for stdout. Every line is flushed."""

    def __init__(self, target: str, options: OutputOptions, bundle: Bundle) -> None:
        self._target = target
        self._failed = False
        self._file: TextIO | None = None
        if target != STDOUT:
            try:
                self._file = Path(target).open("w", encoding="utf-8")  # noqa: SIM115
            except OSError as error:
                raise self._error(error) from error

    def write(self, judgement: Judgement) -> None:
        self._print(record(judgement))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._print({"summary": summary})

    def _print(self, content: Mapping[str, Any]) -> None:
        # After a failure the reader of the lines is gone or the disk is full; it was reported once.
        if self._failed:
            return
        line = json.dumps(content, allow_nan=False)
        try:
            print(line, file=self._file or sys.stdout, flush=True)
        except OSError as error:
            self._failed = True
            if self._file is None:
                discard_stdout()
            if isinstance(error, BrokenPipeError):
                # The command ends without a message: see run_command.
                raise
            raise self._error(error) from error

    def _error(self, error: OSError) -> OutputError:
        name = self._target
        if name == STDOUT:
            name = "stdout"
        return OutputError(
            f"results cannot be written to {name} ({error.strerror}); "
            f"free disk space or choose another output"
        )

    def close(self) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError as error:
            if not self._failed:
                raise self._error(error) from error


def record(judgement: Judgement) -> dict[str, Any]:
    """Return the content of the JSON line of a judgement.

    "score" is null if the part was rejected without a usable score, and "reason" then says why.
    """
    frame = judgement.frame
    verdict = judgement.verdict
    milliseconds = {}
    for stage, duration in verdict.milliseconds.items():
        milliseconds[stage] = round(duration, 3)
    line: dict[str, Any] = {
        "source": printable(frame.source),
        "index": frame.index,
        "captured_at": round(frame.captured_at, 6),
        "score": finite(verdict.score, 6),
        "threshold": verdict.threshold,
        "verdict": verdict_name(judgement),
        "milliseconds": milliseconds,
        "fps": round(judgement.fps, 2),
    }
    if verdict.reason is not None:
        line["reason"] = printable(verdict.reason)
    return line


def verdict_name(judgement: Judgement) -> str:
    """Return "anomalous" or "good"."""
    if judgement.verdict.anomalous:
        return "anomalous"
    return "good"


def finite(value: float, digits: int) -> float | None:
    """Round a number for JSON, which has neither NaN nor infinity; they become None."""
    if math.isfinite(value):
        return round(float(value), digits)
    return None
