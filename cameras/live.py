"""Live sources: only the newest captured frame is stored.

A thread captures, and one slot holds the newest frame. With a plain read loop, a consumer of
10 frames/s on a camera of 25 frames/s is nine seconds late after fifteen seconds. Here a frame that
is not taken before the next one arrives is dropped and counted. A frame that came too late is left
out, and a camera that stalls or fails is opened again, within a budget of restarts.
"""

from __future__ import annotations

import contextlib
import threading
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy.typing as npt

from flawline.cameras import Camera, CameraError, Frame, events
from flawline.cameras.changes import FrameChanges
from flawline.cameras.clock import Clock, SystemClock
from flawline.cameras.events import CameraEvent, EventQueue
from flawline.cameras.grabbed import CorruptFrame, EndOfStream, Grabbed, PermanentError, Waiting
from flawline.cameras.live_options import LiveOptions
from flawline.cameras.restarts import RestartBudget

CLOSE_S = 2.0  # seconds that close() waits for the capture thread


class LiveCamera(Camera):
    """Base class of live cameras. A subclass implements `_open`, `_grab` and `_release`.

    The three methods run on the capture thread. The constructor starts nothing: the thread starts
    with the iteration, so a subclass may set its fields before or after calling this constructor.

    A camera without a usable frame for the times of its options is opened again. When their
    restarts are used up, iterating raises CameraError.
    """

    live: ClassVar[bool] = True

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
        self._budget = RestartBudget(self.limits.restarts, self.limits.window)
        self._changed = threading.Condition()
        self._slot: Waiting | None = None
        self._ended: Exception | None = None
        # When the next usable frame must have come, and what came since the last start.
        self._deadline = 0.0
        self._is_running = False
        self._has_worked = False
        self._unusable = 0
        self._lost_at: float | None = None
        self._events = EventQueue(source)
        self._changes = FrameChanges()
        # Frames of an abandoned capture thread carry an older generation and are ignored.
        self._generation = 0
        self._threads: list[threading.Thread] = []

    @abstractmethod
    def _open(self) -> Any:
        """Open the source and return a handle. Raises CameraError."""

    @abstractmethod
    def _grab(self, handle: Any) -> npt.NDArray[Any] | Frame | Grabbed:
        """Block for the next image and return it as a new array, or as a frame with its facts.

        A frame's index and time are set by the caller. Raises CorruptFrame, CameraError or
        EndOfStream.
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

    def __iter__(self) -> Iterator[Frame]:
        # Iterating again continues the running capture.
        if not self._threads:
            self._start()
        while True:
            waiting, ended, is_late = self._next()
            self._report_events()
            if waiting is not None:
                frame = self._frame(waiting)
                self._report_events()
                if frame is not None:
                    yield frame
            elif self._stopped or isinstance(ended, EndOfStream):
                return
            elif ended is not None:
                self._restart(events.FAILED, ended)
            elif is_late:
                self._restart(events.STALLED, self._stall())

    def _next(self) -> tuple[Waiting | None, Exception | None, bool]:
        """Wait for a frame, an event, the end of the capture, or until the camera is stalled."""

        def changed() -> bool:
            return bool(self._slot or self._ended or self._events)

        with self._changed:
            timeout = max(0.0, self._deadline - self.clock.monotonic())
            self.clock.wait_for(self._changed, changed, timeout)
            waiting = self._slot
            self._slot = None
            # Events alone do not make up for a frame.
            is_late = self.clock.monotonic() >= self._deadline
            return waiting, self._ended, is_late

    def _stall(self) -> CameraError:
        """Say for how long no usable frame came."""
        seconds = self.limits.stall
        if not self._is_running:
            seconds = self.limits.first_frame
        reason = "no frame"
        if self._unusable:
            reason = f"only damaged or old frames, {self._unusable} of them,"
        return CameraError(f"camera {self.source}: {reason} for {seconds:g} s")

    def stop(self) -> None:
        """End the iteration now, and the capture with its next frame. Does not wait."""
        # The condition has a re-entrant lock, so a signal handler may interrupt its own thread.
        with self._changed:
            self._stopped = True
            self._generation += 1
            self._slot = None
            self._ended = EndOfStream()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop, and wait until the camera is released.

        Waits at most CLOSE_S seconds, since a driver may hang for ever.
        """
        self.stop()
        # A thread inside OpenCV when the interpreter ends takes the process down with it
        # (std::terminate).
        deadline = self.clock.monotonic() + CLOSE_S
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - self.clock.monotonic()))

    def _restart(self, name: str, cause: Exception) -> None:
        if isinstance(cause, PermanentError):
            raise cause
        if not self._has_worked and isinstance(self._ended, CameraError):
            raise cause
        # A thread that hangs in the driver cannot be stopped: it is abandoned, and its frames are
        # ignored.
        with self._changed:
            self._generation += 1
        now = self.clock.monotonic()
        if self._lost_at is None:
            self._lost_at = now
        pause = self._budget.backoff()
        # An attempt may take so long that their number alone would never end it.
        is_lost = now - self._lost_at >= self.limits.window
        if is_lost or not self._budget.spend(now):
            raise CameraError(
                f"{cause}; given up after {self._budget.spent} attempts in "
                f"{now - self._lost_at:.0f} s: check cable, power and address"
            )
        attempt = f"attempt {self._budget.spent} of {self._budget.limit}"
        self.on_event(CameraEvent(name, f"{cause}; it is opened again ({attempt})"))
        if self._pause(pause):
            return
        self.reconnects += 1
        self._start()

    def _pause(self, seconds: float) -> bool:
        """Wait before a restart; return True if the camera was stopped meanwhile."""
        with self._changed:
            return self.clock.wait_for(self._changed, lambda: self._stopped, seconds)

    def _start(self) -> None:
        with self._changed:
            if self._stopped:
                return
            self._slot = None
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

    def _put_next(self, generation: int, handle: Any) -> bool:
        """Capture a frame and put it into the slot; return False if this capture is over."""
        try:
            grabbed = self._grab(handle)
        except CorruptFrame as error:
            return self._leave_out_corrupt(generation, error)
        now = self.clock.monotonic()
        if not isinstance(grabbed, Grabbed):
            grabbed = Grabbed.of(grabbed, now)
        age = max(0.0, now - grabbed.captured_mono)
        with self._changed:
            if generation != self._generation:
                return False
            self.dropped += grabbed.missed
            index = self.captured + grabbed.missed
            self.captured = index + 1
            if age > self.limits.age_limit:
                self._leave_out_stale(age)
                return True
            if self._slot is not None:
                self.dropped += 1
            captured_at = self.clock.time() - age
            self._slot = Waiting(index, grabbed.payload, captured_at, grabbed.captured_mono)
            self._unusable = 0
            self._is_running = True
            self._has_worked = True
            self._deadline = now + self.limits.stall
            self._changed.notify_all()
            return True

    def _leave_out_corrupt(self, generation: int, error: CorruptFrame) -> bool:
        """Count a damaged frame; return False if this capture is over."""
        with self._changed:
            if generation != self._generation:
                return False
            self.corrupt += 1
            self._unusable += 1
            self._events.add(events.CORRUPT, f"a damaged frame was left out: {error}")
            self._changed.notify_all()
            return True

    def _leave_out_stale(self, age: float) -> None:
        """Count a frame that is too old. The caller holds the condition."""
        self.stale += 1
        self._unusable += 1
        limit = f"max_age is {self.limits.age_limit:g} s"
        self._events.add(events.STALE, f"a frame was left out that is {age:.1f} s old; {limit}")
        self._changed.notify_all()

    def _report_events(self) -> None:
        with self._changed:
            waiting = self._events.take()
        for event in waiting:
            self.on_event(event)

    def _frame(self, waiting: Waiting) -> Frame | None:
        """Make the frame that is handed out; None if it is too old or damaged."""
        age = self.clock.monotonic() - waiting.captured_mono
        if age > self.limits.age_limit:
            with self._changed:
                self._leave_out_stale(age)
            return None
        try:
            image = self._convert(waiting.payload)
        except CorruptFrame as error:
            self._leave_out_corrupt(self._generation, error)
            return None
        frame = waiting.frame(image, self.source)
        with self._changed:
            self._note_frame(frame)
        return frame

    def _note_frame(self, frame: Frame) -> None:
        """Add the events of a frame that is handed out. The caller holds the condition."""
        self._changes.note(frame, self._events)
        if self._lost_at is not None:
            seconds = self.clock.monotonic() - self._lost_at
            self._lost_at = None
            self._events.add(events.RECOVERED, f"gives frames again after {seconds:.1f} s")
