"""A running `flawline stream`, whose lines get the time when they came."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flawline.benchmarks.studies.results import StudyError
from flawline.runtime.bundle import Bundle
from flawline.runtime.files import replace_folder

PATIENCE_S = 120.0
ENGINE = re.compile(r"^engine (.*), self-test passed")


class Line(NamedTuple):
    """A judged frame: when its line came, by the monotonic clock, its number and its threshold.

    `dropped` is how many frames the camera had replaced by newer ones until then.
    """

    at: float
    number: int
    threshold: float
    dropped: int


class Stream:
    """Runs the command for the bundle at a path until the block ends.

    `lines` are all that came so far. Raises StudyError if the stream ends or a frame does not come.
    """

    def __init__(self, place: Path, words: Sequence[str]) -> None:
        command = [sys.executable, "-m", "flawline", "stream", "--bundle", str(place), *words]
        self._place = place
        self.lines: list[Line] = []
        self.engine = ""
        self._summary: dict[str, Any] | None = None
        self._messages: list[str] = []
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._hear)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def rest(self, seconds: float) -> list[Line]:
        """Return the lines of so many seconds in which nothing else happens."""
        self._until(lambda: len(self.lines) > 0)
        first = len(self.lines)
        time.sleep(seconds)
        self._until(lambda: len(self.lines) > first + 1)
        return self.lines[first:]

    def swap(self, bundle: Bundle, seconds: float) -> tuple[list[Line], float]:
        """Put a copy of a bundle in the place of the present one.

        Returns the lines from then until `seconds` after its first one, and the moment before the
        rename.
        """
        with replace_folder(self._place) as new:
            shutil.copytree(bundle.path, new, dirs_exist_ok=True)
            # What was written must not be what is waited for.
            time.sleep(1.0)
            first = len(self.lines)
            moment = time.monotonic()
        threshold = bundle.calibration.threshold
        self._until(lambda: any(line.threshold == threshold for line in self.lines[first:]))
        time.sleep(seconds)
        return self.lines[first:], moment

    def end(self) -> dict[str, Any]:
        """End the stream, and return its summary."""
        self._process.terminate()
        self._until(lambda: self._summary is not None)
        assert self._summary is not None
        return self._summary

    def _until(self, condition: Callable[[], bool]) -> None:
        limit = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > limit or self._process.poll() not in (None, 0):
                reason = self._messages[-1] if self._messages else "no message"
                raise StudyError(f"the stream gave no further frame; its last message: {reason}")
            time.sleep(0.005)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            at = time.monotonic()
            content = json.loads(text)
            if "summary" in content:
                self._summary = content["summary"]
            else:
                line = Line(at, content["index"], content["threshold"], content["dropped"])
                self.lines.append(line)

    def _hear(self) -> None:
        assert self._process.stderr is not None
        for text in self._process.stderr:
            self._messages.append(text.strip())
            found = ENGINE.match(text)
            if found is not None:
                self.engine = found[1]
