"""What the stream leaves for the page: a lane for each camera, health, and parts that were kept."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flawline.cameras import Camera, events
from flawline.cameras.events import CameraEvent
from flawline.runtime.bundle import Bundle
from flawline.runtime.outputs import Judgement, StreamState
from flawline.runtime.outputs.web.collection import Collection
from flawline.runtime.outputs.web.kept import KeptParts
from flawline.runtime.outputs.web.lane import Lane
from flawline.runtime.teaching import TEACHERS

MOST_WARNINGS = 100
# The only camera of a stream, if it has no name, and the parts that several cameras see.
ONLY = "1"
SAME_PART = "parts"

STARTING = "starting"
RUNNING = "running"
ENDED = "ended"


@dataclass
class CameraWatch:
    """A camera of the stream, and since when it does or does not give frames.

    `since` is in seconds since 1970.
    """

    name: str
    camera: Camera
    since: float = 0.0
    _fault: str | None = None

    @property
    def fault(self) -> str | None:
        """Why the camera gives no frames, without what it calls itself; None if it gives them."""
        fault = self.camera.lost or self._fault
        return None if fault is None else fault.removeprefix(f"camera {self.camera.source}: ")

    def note(self, event: CameraEvent) -> None:
        """Take note of an event of the camera."""
        if event.name in (events.STALLED, events.FAILED):
            self._fault = event.text
            self.since = time.time()
        elif event.name == events.RECOVERED:
            self._fault = None
            self.since = time.time()


class Board:
    """What the threads of the stream write and those of the page read.

    `bundle` is what judges first, and `title` what the page calls the station.
    """

    def __init__(self, bundle: Bundle, title: str) -> None:
        self.title = title
        self.started = time.time()
        self.phase = STARTING
        # Replaced as a whole when a lane comes, so that it may be read meanwhile.
        self.lanes: Mapping[str, Lane] = {}
        self.cameras: list[CameraWatch] = []
        self.kept = KeptParts()
        self.bundle = bundle
        self._keep_images()
        # Counts whatever changes the state of the page, and what changes that of teaching.
        self.version = 0
        self.teaching = 0
        self.collection = Collection(self.note_teaching)
        self.collection.restore(bundle.path)
        self._stream: Callable[[], StreamState] | None = None
        self._warnings: deque[tuple[float, str]] = deque(maxlen=MOST_WARNINGS)
        self._warnings_lock = threading.Lock()

    # What the stream calls.

    def follow(self, stream: Callable[[], StreamState]) -> None:
        """Take note of what gives the state of the stream."""
        self._stream = stream

    def attach(self, camera: Camera) -> None:
        """Take note of a camera."""
        name = camera.name or str(len(self.cameras) + 1)
        self.cameras.append(CameraWatch(name, camera))
        self.lanes = {**self.lanes, name: Lane(name)}
        self.phase = RUNNING
        self.version += 1

    def note_event(self, camera: Camera, event: CameraEvent) -> None:
        """Take note of an event of a camera."""
        for watch in self.cameras:
            if watch.camera is camera:
                watch.note(event)
        self.version += 1

    def change_bundle(self, bundle: Bundle) -> None:
        """Take note that what follows is judged by another bundle, or with other thresholds."""
        self.bundle = bundle
        self._keep_images()
        self.collection.restore(bundle.path)
        # What can be taught is of the bundle.
        self.note_teaching()

    def _keep_images(self) -> None:
        self.kept.keeps_images = self.bundle.manifest.method in TEACHERS

    def add(self, judgement: Judgement) -> None:
        """Take note of a judgement."""
        shown = self._lane(judgement).add(judgement, self.bundle)
        if shown is not None:
            self.kept.add(shown)
        self.collection.offer(judgement, self.bundle)
        self.version += 1

    def _lane(self, judgement: Judgement) -> Lane:
        name = judgement.camera or ONLY
        views = judgement.views
        if views and views[0].camera is not None:
            # A part has one verdict, so that the cameras have none of their own.
            name = SAME_PART
            if name not in self.lanes:
                self.lanes = {name: Lane(name)}
        lane = self.lanes.get(name)
        if lane is None:
            lane = Lane(name)
            self.lanes = {**self.lanes, name: lane}
        return lane

    def warn(self, text: str) -> None:
        """Take note of a warning of the process. Any thread may call."""
        with self._warnings_lock:
            self._warnings.append((time.time(), text))
        self.version += 1

    def note_teaching(self) -> None:
        """Take note that something about teaching has changed. Any thread may call."""
        self.teaching += 1
        self.version += 1

    def end(self) -> None:
        """Take note that the stream has ended."""
        self.phase = ENDED
        self.version += 1

    def release(self) -> None:
        """Release all images. Libraries of the server may keep the board until the process ends."""
        self.lanes = {}
        self.kept = KeptParts()
        self.collection.close()

    # What the page calls.

    def warnings(self) -> list[tuple[float, str]]:
        """Return when each warning was given, in seconds since 1970, and its text, newest first."""
        with self._warnings_lock:
            return list(reversed(self._warnings))

    def stream(self) -> StreamState | None:
        """Return the state of the stream; None before it has begun."""
        return None if self._stream is None else self._stream()

    def dropped(self, name: str) -> int:
        """Return how many frames a camera has dropped; those of all for the parts of several."""
        watches = self.cameras
        if name != SAME_PART:
            watches = [watch for watch in watches if watch.name == name]
        return sum(watch.camera.dropped for watch in watches)
