"""One of several cameras: a thread iterates over it, and the loop takes its frames."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from flawline.cameras import Camera, CameraError, Frame
from flawline.cameras.events import CameraEvent
from flawline.runtime.ahead import Prepare, Prepared
from flawline.runtime.console import warn
from flawline.runtime.station.notices import FrameNotices
from flawline.runtime.station.tally import Tally

JOIN_S = 2.0  # seconds that `join` waits for the thread


class CameraReader:
    """Reads a camera in a thread; holds one frame at a time, its counts and its failure.

    The thread fetches and prepares the next frame while the ones before are judged. Of a camera
    that drops frames, it is fetched only so early that it is expected to be prepared at its turn,
    to judge from the time between the last two turns, and at once when `want` is called.
    `on_change` is called, by any thread, when there is a frame, an event or the end; it must not
    wait. `clock` returns seconds that never go backwards.

    The threads share no lock with the loop, because a signal handler, which may interrupt any line
    of the loop, stops the cameras.
    """

    def __init__(
        self,
        name: str,
        camera: Camera,
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.camera = camera
        # Why the camera gives no more frames, unless it has simply ended.
        self.error: Exception | None = None
        self.notices = FrameNotices(camera=name)
        self.tally = Tally()
        self._on_change = on_change
        self._clock = clock
        self._frames: queue.SimpleQueue[Prepared[Frame]] = queue.SimpleQueue()
        self._taken: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._wanted: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[CameraEvent] = queue.SimpleQueue()
        self._finished = False
        self._reported = False
        self._stopped = False
        # When the last frame was taken, how long after the one before, and how long it took to be
        # prepared. In seconds.
        self._taken_at: float | None = None
        self._turn = 0.0
        self._made_in = 0.0
        camera.on_event = self._note
        self._thread = threading.Thread(target=self._run, name=f"camera {name}", daemon=True)
        self._prepare: Prepare[Frame]

    def start(self, prepare: Prepare[Frame]) -> None:
        """Begin to iterate over the camera, and to measure. `prepare` is that of the detector."""
        self._prepare = prepare
        self.tally = Tally()
        self._thread.start()

    def change_prepare(self, prepare: Prepare[Frame]) -> None:
        """Prepare by another function from now on; a frame that waits is prepared again."""
        self._prepare = prepare

    def _run(self) -> None:
        try:
            for frame in self.camera:
                start = self._clock()
                made = Prepared.of(frame, self._prepare)
                self._made_in = self._clock() - start
                self._frames.put(made)
                self._on_change()
                if self._is_fetched_ahead(frame):
                    continue
                self._taken.get()
                if self._stopped:
                    break
                if self.camera.newest_only:
                    self._wait_until_due()
        except Exception as error:
            # Every exception must reach the loop, not end with the thread.
            self.error = error
            self.camera.lost = str(error)
            # No frames of pulses that are still sent to it would be taken.
            self.camera.stop()
        self._finished = True
        self._on_change()

    def _is_fetched_ahead(self, frame: Frame) -> bool:
        """Tell whether the next frame is fetched before this one is taken.

        To reject a frame without an image takes no time. Those of a camera that does not wait would
        be more and more if each took the place of an image in a batch.
        """
        return frame.image is None and self.camera.live

    def _wait_until_due(self) -> None:
        """Wait until the next frame is to be fetched: a newer one then comes to the next turn."""
        assert self._taken_at is not None
        pause = self._taken_at + self._turn - self._made_in - self._clock()
        with suppress(queue.Empty):
            self._wanted.get(timeout=max(0.0, pause))

    def _note(self, event: CameraEvent) -> None:
        self._events.put(event)
        self._on_change()

    @property
    def ready(self) -> bool:
        """Whether a frame waits to be taken."""
        return not self._frames.empty()

    @property
    def ended(self) -> bool:
        """Whether the camera gives no more frames."""
        # In this order, since the thread leaves its last frame before it finishes.
        return self._finished and not self.ready

    @property
    def lost(self) -> bool:
        """Whether the camera has failed for good."""
        return self.error is not None

    def want(self) -> None:
        """Let the next frame be fetched now, because the loop waits for frames."""
        self._wanted.put(None)

    def take(self) -> Prepared[Frame] | None:
        """Take the frame that waits; None if it has become too old, so that it is left out."""
        made = self._frames.get()
        if not self._is_fetched_ahead(made.item):
            now = self._clock()
            if self._taken_at is not None:
                self._turn = now - self._taken_at
            self._taken_at = now
            while not self._wanted.empty():
                self._wanted.get()
            self._taken.put(None)
        frame = self.camera.still_valid(made.item)
        if frame is None:
            return None
        if frame is not made.item:
            return Prepared.of(frame, self._prepare)
        return made.made_by(self._prepare)

    def report(self, others: bool) -> None:
        """Print what happened to the camera; `others` says whether another one gives frames.

        Raises the exception of a camera that is not a CameraError.
        """
        while not self._events.empty():
            event = self._events.get()
            self.notices.event(CameraEvent(event.name, self._without_source(event.text)))
        if self.error is None or self._reported:
            return
        if not isinstance(self.error, CameraError):
            raise self.error
        self._reported = True
        if others:
            warn(f"{self.describe_error()}; the other cameras continue")

    def describe_error(self) -> str:
        """Say why the camera is lost, with its name."""
        source = self.camera.source
        reason = self._without_source(str(self.error))
        title = f"camera {self.name}"
        if source:
            title += f" ({source})"
        return f"{title} is lost: {reason}"

    def _without_source(self, text: str) -> str:
        """Return a message of the camera without what it calls itself; its name comes first."""
        return text.removeprefix(f"camera {self.camera.source}: ")

    def stop(self) -> None:
        """End the iteration. Does not wait; a signal handler may call it."""
        self._stopped = True
        self.camera.stop()
        self._taken.put(None)
        self._wanted.put(None)

    def join(self) -> None:
        """Wait for the thread after `stop`, but not for long: a driver may hang for ever.

        The image of a live camera that was not taken counts as dropped.
        """
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)
        while not self._frames.empty():
            frame = self._frames.get().item
            # As those that wait in the camera. Faults were counted when they came.
            if self.camera.live and frame.image is not None:
                self.camera.dropped += 1
