"""Messages about single frames, limited so that a camera that fails for hours fills no log."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from flawline.cameras import Frame, events
from flawline.cameras.events import CameraEvent
from flawline.runtime.console import log, warn
from flawline.runtime.drift.watch import Change
from flawline.runtime.outputs import ViewVerdict
from flawline.runtime.verdict import Verdict

INTERVAL = 10.0  # seconds between two messages of a kind
UNJUDGED = "unjudged"


class FrameNotices:
    """Prints warnings about frames: the first of each kind, and then one every 10 seconds.

    A warning says for how many frames since the last one of its kind there was none. Any thread may
    call. `clock`
    returns seconds that never go backwards. `camera` is the name of the camera that they are about,
    if there are several.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, camera: str | None = None
    ) -> None:
        self._clock = clock
        # Names may be numbers, which alone would be read as something else.
        self._prefix = "" if camera is None else f"camera {camera}: "
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        self._left_out: Counter[str] = Counter()

    def unjudged(self, frame: Frame, verdict: Verdict, views: Sequence[ViewVerdict] = ()) -> None:
        """Warn if the verdict says that a frame, or a part with several views, was not judged."""
        if verdict.judged:
            return
        if views:
            # Some of the views may have been judged. If several cameras took them, the reason names
            # the camera.
            name = f"part {frame.part}"
            if views[0].camera is None:
                name = self._prefix + name
            self.warn(UNJUDGED, f"{name} was not judged, and is rejected: {verdict.reason}")
            return
        name = f"{self._prefix}frame {frame.index} of {frame.source}"
        if frame.part is not None:
            name += f", part {frame.part},"
        self.warn(UNJUDGED, f"{name} was not judged, and its part rejected: {verdict.reason}")

    def drift(self, change: Change) -> None:
        """Warn that a warning of the drift check begins or ends; there are few."""
        warn(f"warning: {self._prefix}{change.text}")

    def event(self, event: CameraEvent) -> None:
        """Warn of an event of the camera; each name is a kind of its own.

        One that is no problem is a line of information, which a quiet process leaves out.
        """
        text = self._prefix + event.text
        if event.name in events.INFORMATION:
            log(text)
            return
        self.warn(f"event {event.name}", text, "events")

    def warn(self, kind: str, text: str, counted: str = "frames") -> None:
        """Print a warning, if one of this kind is due. `counted` is what the left-out ones are."""
        with self._lock:
            now = self._clock()
            last = self._last.get(kind)
            if last is not None and now - last < INTERVAL:
                self._left_out[kind] += 1
                return
            if self._left_out[kind]:
                text += f", and {self._left_out[kind]} more {counted} since the last such message"
            self._last[kind] = now
            self._left_out[kind] = 0
        warn(text)
