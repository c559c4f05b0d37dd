"""Making the checks: a process makes them, and is started again if a check ends it or hangs."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO, Any

from flawline.runtime.console import last_line
from flawline.runtime.doctor import CHECKS
from flawline.runtime.doctor.finding import Finding, problem
from flawline.runtime.doctor.machine import Subject
from flawline.runtime.doctor.subject import subject_to_json

# The process is started with the interpreter and the import path of this one.
WORKER = (sys.executable, "-c", "from flawline.runtime.doctor.worker import main; main()")
BLOCK = 1 << 16


class _Ended(Exception):
    """The process gave no answer; the message says why, as the end of a sentence."""


def examine(names: Iterable[str], subject: Subject) -> Iterator[tuple[str, Finding]]:
    """Make the checks with these names of CHECKS; yield each finding with the name of its check."""
    with _Worker(WORKER) as worker:
        for name in names:
            yield from _examine(worker, name, subject_to_json(subject))


def _examine(worker: _Worker, name: str, subject: dict[str, Any]) -> Iterator[tuple[str, Finding]]:
    members: list[str | None] = [None]
    while members:
        member = members.pop(0)
        request = {"check": name, "member": member, "subject": subject}
        try:
            answer = worker.ask(request, CHECKS[name].limit_s)
        except _Ended as ended:
            title = name if member is None else member
            yield name, problem(f"{title}: the check {ended}", "see what it loads or opens")
            continue
        members.extend(answer.get("members", ()))
        for finding in answer.get("findings", ()):
            yield name, Finding(**finding)


class _Worker:
    """The process that makes the checks, started when it is needed. Use it as a context manager."""

    def __init__(self, command: Iterable[str]) -> None:
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._received = b""

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Return the answer to a request. Raises _Ended if there is none in so many seconds."""
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(f"{json.dumps(request)}\n".encode())
            process.stdin.flush()
            line = self._line(process, limit_s)
        except BrokenPipeError:
            line = None
        if line is None:
            raise _Ended(self._reason(process))
        if not line:
            self._end()
            raise _Ended(f"gave no answer within {limit_s:g} s")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        # What libraries print is only read if the process ends.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._received = b""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # Programs that it starts are ended with it.
            start_new_session=True,
        )
        return self._process

    def _line(self, process: subprocess.Popen[bytes], limit_s: float) -> bytes | None:
        """Return the next line; None if the process ends, empty after so many seconds."""
        assert process.stdout is not None
        deadline = time.monotonic() + limit_s
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
        """Say how the process ended, with its last line if it left one."""
        status = process.wait()
        reason = f"ended with status {status}"
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
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
        if self._log is not None:
            self._log.close()
            self._log = None
