"""Calling functions in a process of their own, which libraries may crash or block.

with IsolatedProcess() as process:
    cameras = process.call("flawline.cameras.connected:connected", "usb", limit_s=10)
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import import_module
from typing import IO, Any

from flawline.runtime.console import first_line, last_line

# The interpreter is that of this process. A file of the current folder hides no module.
PROGRAM = (
    "import sys; sys.path[:] = [path for path in sys.path if path]; "
    "from flawline.runtime.isolated import answer_calls; answer_calls()"
)
BLOCK = 1 << 16


class CallFailed(Exception):
    """A call gave no result; the message says why, as the end of a sentence that begins with it."""


class IsolatedProcess:
    """A process that calls functions, one after the other; it is started again if it ends.

    Arguments and results are what JSON holds. Use it as a context manager.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._received = b""

    def __enter__(self) -> IsolatedProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def call(self, target: str, *arguments: Any, limit_s: float) -> Any:
        """Return the result of "module:function".

        Raises CallFailed if the function raises, if it ends or crashes the process, and if it takes
        longer than so many seconds.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        line: bytes | None = None
        with suppress(BrokenPipeError):
            process.stdin.write(f"{json.dumps([target, *arguments])}\n".encode())
            process.stdin.flush()
            line = self._line(process, time.monotonic() + limit_s)
        if line is None:
            raise CallFailed(self._reason(process))
        if not line:
            self._end()
            raise CallFailed(f"gave no answer within {limit_s:g} s")
        answer = json.loads(line)
        if "error" in answer:
            raise CallFailed(f"failed: {answer['error']}")
        return answer["result"]

    def _start(self) -> subprocess.Popen[bytes]:
        # What libraries print is only read if the process ends.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._received = b""
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # Programs that it starts are ended with it.
            start_new_session=True,
        )
        return self._process

    def _line(self, process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
        """Return the next line; None if the process ends, and an empty one after the deadline."""
        assert process.stdout is not None
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0:
                return b""
            if not select.select([process.stdout], [], [], left)[0]:
                continue
            block = os.read(process.stdout.fileno(), BLOCK)
            if not block:
                return None
            self._received += block
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _reason(self, process: subprocess.Popen[bytes]) -> str:
        """Say how the process ended, with the last line that it printed."""
        status = process.wait()
        reason = f"ended its process with status {status}"
        if status < 0:
            reason = f"was ended by {signal.Signals(-status).name}"
        assert self._log is not None
        self._log.seek(0)
        text = self._log.read().decode("utf-8", "replace").strip()
        self._end()
        return f"{reason} ({last_line(text)})" if text else reason

    def _end(self) -> None:
        process = self._process
        self._process = None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout):
                # What was not written is of no further use.
                with suppress(BrokenPipeError):
                    if stream is not None:
                        stream.close()
        if self._log is not None:
            self._log.close()
            self._log = None


def answer_calls() -> None:
    """Answer the calls that stdin has, a line each, until it ends."""
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        target, *arguments = json.loads(line)
        print(json.dumps(_answer(target, arguments)), file=answers, flush=True)


def _answer(target: str, arguments: list[Any]) -> dict[str, Any]:
    module, _, name = target.partition(":")
    try:
        return {"result": getattr(import_module(module), name)(*arguments)}
    except Exception as error:
        # Whatever a library raises is for the caller to report.
        return {"error": f"{type(error).__name__}: {first_line(error)}"}
