"""The capture thread of a live camera, and what it leaves for the consumer of the frames.

The thread opens the camera, waits for its frames and stores them. It ends with the first error.
`live.LiveCamera` takes the frames and starts the capture again.
"""

from __future__ import annotations

import contextlib
import threading
from abc import abstractmethod
from typing import Any, ClassVar

import numpy.typing as npt

from flawline.cameras import Camera, CameraError, Frame, events
from flawline.cameras.clock import Clock, SystemClock
from flawline.cameras.events import EventQueue
from flawline.cameras.frame_queue import FrameQueue, NewestFrame, WaitingFrames
from flawline.cameras.grabbed import CorruptFrame, EndOfStream, Grabbed, Waiting
from flawline.cameras.live_options import LiveOptions

LOST = "the camera's image of this frame was lost on the way"
REOPENED = (
    "the camera was opened again; the frames meanwhile have no image, and their number is unknown"
)

# Seconds that a capture waits for the one before it to release an exclusive camera.
RELEASE_S = 2.0


class CapturingCamera(Camera):
    """Base class of `LiveCamera`: the half that runs on the capture thread.

    A subclass of that one implements `_open`, `_grab` and `_release`. The constructor starts
    nothing, so a subclass may set its fields before or after calling it.
    """

    live: ClassVar[bool] = True
    # True for a source that cannot be opened while a capture before this one still has it open.
    exclusive: ClassVar[bool] = False

    def __init__(
        self, source: str, options: LiveOptions | None = None, clock: Clock | None = None
    ) -> None:
        super().__init__()
        self.source = source
        self.limits = options or LiveOptions()
        self.clock = clock or SystemClock()
        # Whole frames that the source gave. A damaged one counts as corrupt only, and one that is
        # older than the limit as captured and as stale.
        self.captured = 0
        self.corrupt = 0
        self.stale = 0
        self._changed = threading.Condition()
        self._waiting: WaitingFrames = NewestFrame()
        if self.limits.keeps_all:
            self._waiting = FrameQueue(source, self.limits.queue_size, self.clock)
        self._ended: Exception | None = None
        # When the next usable frame must have come, and what came since the last start.
        self._deadline = 0.0
        self._is_running = False
        self._has_worked = False
        self._unusable = 0
        # True until the first frame after a restart shows that others are missing before it.
        self._has_gap = False
        self._events = EventQueue(source)
        # Frames of an abandoned capture thread carry an older generation and are ignored.
        self._generation = 0
        self._threads: list[threading.Thread] = []

    @abstractmethod
    def _open(self) -> Any:
        """Open the source and return a handle. Raises CameraError."""

    @abstractmethod
    def _grab(self, handle: Any) -> npt.NDArray[Any] | Frame | Grabbed | None:
        """Block for the next image and return it as a new array, or as a frame with its facts.

        Its index and wall clock time are set by the caller. Return None if there is no image yet: a
        camera that does so often is released soon after it was found to stall. Raises CorruptFrame,
        CameraError or EndOfStream.
        """

    @abstractmethod
    def _release(self, handle: Any) -> None:
        """Free the handle."""

    def _convert(self, payload: Any) -> npt.NDArray[Any] | Frame:
        """Make an image of what `_grab` returned. Raises CorruptFrame and CameraError.

        The consumer calls it, and only for frames that it takes.
        """
        image: npt.NDArray[Any] | Frame = payload
        return image

    def counts(self) -> dict[str, int]:
        return {
            "captured": self.captured,
            "dropped": self.dropped,
            "corrupt": self.corrupt,
            "stale": self.stale,
            "reconnects": self.reconnects,
        }

    def _start(self) -> None:
        with self._changed:
            if self._stopped:
                return
            self.dropped += self._waiting.reopen()
            self._ended = None
            self._unusable = 0
            self._is_running = False
            self._deadline = self.clock.monotonic() + self.limits.first_frame
            generation = self._generation
        name = f"capture {self.source}"
        thread = threading.Thread(target=self._capture, args=(generation,), name=name, daemon=True)
        alive = [other for other in self._threads if other.is_alive()]
        self._threads = [*alive, thread]
        thread.start()

    def _capture(self, generation: int) -> None:
        """Capture frames until the generation is over; report the end to the consumer."""
        handle: Any = None
        ended: Exception
        try:
            if self.exclusive:
                self._wait_for_release()
            handle = self._open()
            while self._put_next(generation, handle):
                pass
            return
        except (CameraError, EndOfStream) as error:
            ended = error
        except Exception as error:
            # Every exception of a driver must reach the consumer, not end with the thread.
            ended = CameraError(f"camera {self.source}: {type(error).__name__}: {error}")
        finally:
            if handle is not None:
                # A driver that failed may fail again; the first cause counts.
                with contextlib.suppress(Exception):
                    self._release(handle)
        with self._changed:
            if generation == self._generation:
                self._ended = ended
                self._changed.notify_all()

    def _wait_for_release(self) -> None:
        """Wait until every earlier capture has ended. Raises CameraError if one hangs."""
        for thread in self._threads:
            if thread is threading.current_thread():
                continue
            thread.join(RELEASE_S)
            if thread.is_alive():
                raise CameraError(
                    f"camera {self.source}: its driver does not answer; connect it again"
                )

    def _put_next(self, generation: int, handle: Any) -> bool:
        """Capture a frame and put it into the slot; return False if this capture is over."""
        try:
            grabbed = self._grab(handle)
        except CorruptFrame as error:
            return self._put_corrupt(generation, error)
        if grabbed is None:
            return generation == self._generation
        now = self.clock.monotonic()
        if not isinstance(grabbed, Grabbed):
            grabbed = Grabbed.of(grabbed, now)
        age = max(0.0, now - grabbed.captured_mono)
        with self._changed:
            if generation != self._generation:
                return False
            self._note_lost(grabbed.missed)
            index = self.captured
            self.captured += 1
            if age > self.limits.oldest_judged and not self.limits.keeps_all:
                self._count_stale(age)
                return True
            captured_at = self.clock.time() - age
            waiting = Waiting(index, grabbed.payload, captured_at, grabbed.captured_mono)
            self.dropped += self._waiting.put(waiting)
            self._unusable = 0
            self._is_running = True
            self._has_worked = True
            self._deadline = now + self.limits.stall
            self._changed.notify_all()
            return True

    def _put_corrupt(self, generation: int, error: CorruptFrame) -> bool:
        """Note a damaged frame; return False if this capture is over."""
        with self._changed:
            if generation != self._generation:
                return False
            self._note_lost(error.missed)
            self._waiting.put_fault(f"the frame is damaged: {error}")
            self._count_corrupt(error)
            return True

    def _note_lost(self, missed: int) -> None:
        """Count frames that the driver dropped. The caller holds the condition."""
        if self._has_gap:
            self._has_gap = False
            self._waiting.put_fault(REOPENED)
        self.captured += missed
        self.dropped += missed
        for _ in range(missed):
            self._waiting.put_fault(LOST)

    def _count_corrupt(self, error: CorruptFrame) -> None:
        """Count a damaged frame. The caller holds the condition."""
        self.corrupt += 1
        self._unusable += 1
        self._events.add(events.CORRUPT, f"a damaged frame {self._fate()}: {error}")
        self._changed.notify_all()

    def _count_stale(self, age: float) -> None:
        """Count a frame that is too old. The caller holds the condition."""
        self.stale += 1
        self._unusable += 1
        limit = f"max_age is {self.limits.age_limit:g} s"
        self._events.add(events.STALE, f"a frame {self._fate()} that is {age:.1f} s old; {limit}")
        self._changed.notify_all()

    def _fate(self) -> str:
        """Say what becomes of a frame that cannot be judged."""
        if self.limits.keeps_all:
            return "is rejected"
        return "was left out"
