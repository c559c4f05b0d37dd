"""Messages about single frames, limited so that a camera that fails for hours fills no log."""

from __future__ import annotations

import time
from collections.abc import Callable

from flawline.cameras import Frame
from flawline.runtime.console import warn
from flawline.runtime.detector import Verdict

INTERVAL = 10.0  # seconds between two messages


class UnjudgedNotices:
    """Logs frames that could not be judged: the first one, and then one every 10 seconds.

    A message says how many frames since the last one it does not name. `clock` returns seconds that
    never go backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self._left_out = 0

    def note(self, frame: Frame, verdict: Verdict) -> None:
        """Log a frame if its verdict says that it could not be judged, and a message is due."""
        if verdict.judged:
            return
        now = self._clock()
        if self._last is not None and now - self._last < INTERVAL:
            self._left_out += 1
            return
        more = ""
        if self._left_out:
            more = f", and {self._left_out} more frames since the last such message"
        warn(
            f"frame {frame.index} of {frame.source} was not judged, and its part rejected: "
            f"{verdict.reason}{more}"
        )
        self._last = now
        self._left_out = 0
