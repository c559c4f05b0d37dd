"""A process in the environment of another library, which judges images that it is asked for.

The protocol, lines of JSON, is that of `theirs.py`.
"""

from __future__ import annotations

import json
import math
import queue
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from flawline import FlawlineError
from flawline.commands import shell_line
from flawline.runtime.console import last_line

# Libraries take long to import, and a first call compiles the model.
START_S = 300.0
ANSWER_S = 120.0


class PeerError(FlawlineError):
    """The other side cannot be run or does not answer as the protocol says."""


class Judged(NamedTuple):
    """The score of an image, and the milliseconds of each timed call."""

    score: float
    milliseconds: list[float]


class Peer:
    """A running process; `facts` is what it says about itself. Use it as a context manager."""

    def __init__(
        self, command: Sequence[str | Path], start_s: float = START_S, answer_s: float = ANSWER_S
    ) -> None:
        """Start the process and wait until it is ready. Raises PeerError."""
        self._answer_s = answer_s
        self._words = [str(word) for word in command]
        # What it prints is kept for a message about its end.
        self._errors = tempfile.TemporaryFile("w+", prefix="flawline-")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        except OSError as error:
            self._errors.close()
            raise PeerError(
                f"{command[0]} cannot be run ({error.strerror}); see --theirs"
            ) from error
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.facts: dict[str, Any] = self._receive("ready", dict, start_s)
        except BaseException:
            # It need not read its input yet, which would end it.
            self._process.kill()
            self.close()
            raise

    def judge(self, path: Path, repeats: int, settle_s: float) -> Judged:
        """Let it judge an image file `repeats` times, after untimed calls. Raises PeerError."""
        request = {"path": str(path), "repeats": repeats, "settle_s": settle_s}
        assert self._process.stdin is not None
        # Where the process has ended, the missing answer says why.
        with suppress(OSError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer = self._next_answer(self._answer_s)
        score = self._take(answer, "score", (int, float))
        times = self._take(answer, "milliseconds", list)
        if not math.isfinite(score):
            raise PeerError(f"the other side gives {path} the score {score}; nothing is comparable")
        if len(times) != repeats or not all(isinstance(time, (int, float)) for time in times):
            raise PeerError(
                f"the other side was asked for {repeats} times of {path}, and answered {times!r}"
            )
        return Judged(float(score), [float(time) for time in times])

    def _read(self) -> None:
        """Pass on the lines of the process; an empty one stands for its end."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _receive(self, key: str, kind: type, seconds: float) -> Any:
        return self._take(self._next_answer(seconds), key, kind)

    def _next_answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise PeerError(
                f"the other side did not answer within {seconds:g} s; run its command by hand: "
                f"{self._command()}"
            ) from None
        if not line:
            status = self._process.wait()
            raise PeerError(
                f"the other side ended with status {status} ({self._last_error()}); run its "
                f"command by hand: {self._command()}"
            )
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise PeerError(f"the other side answered {line.strip()[:100]!r}, which is no answer")
        if "error" in answer:
            raise PeerError(f"the other side failed: {last_line(str(answer['error']))}")
        return answer

    def _take(self, answer: dict[str, Any], key: str, kind: Any) -> Any:
        value = answer.get(key)
        if not isinstance(value, kind):
            raise PeerError(f"the answer of the other side has {key} {value!r}, which is no answer")
        return value

    def _command(self) -> str:
        return shell_line(self._words)

    def _last_error(self) -> str:
        self._errors.seek(0)
        return last_line(self._errors.read() or "it printed nothing")

    def close(self) -> None:
        """End the process. May be called again."""
        assert self._process.stdin is not None
        # The pipe may be that of a process that has ended.
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
