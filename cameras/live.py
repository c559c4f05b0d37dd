"""Live sources: only the newest captured frame is stored, or with `every_frame` all of them.

A thread captures, and one slot holds the newest frame. With a plain read loop, a consumer of
10 frames/s on a camera of 25 frames/s is nine seconds late after fifteen seconds. Here a frame that
is not taken before the next one arrives is dropped and counted. A frame that came too late is left
out, and a camera that stalls or fails is opened again, within a budget of restarts.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

from flawline.cameras import CameraError, Frame, events
from flawline.cameras.capture import CapturingCamera
from flawline.cameras.changes import FrameChanges
from flawline.cameras.clock import Clock
from flawline.cameras.events import CameraEvent
from flawline.cameras.grabbed import CorruptFrame, EndOfStream, PermanentError, Waiting
from flawline.cameras.live_options import LiveOptions
from flawline.cameras.restarts import RestartBudget

CLOSE_S = 2.0  # seconds that close() waits for the capture thread


class LiveCamera(CapturingCamera):
    """Base class of live cameras. A subclass implements `_open`, `_grab` and `_release`.

    The three methods run on the capture thread, which starts with the iteration.

    A camera without a usable frame for the times of its options is opened again. When their
    restarts are used up, iterating raises CameraError.
    """

    def __init__(
        self, source: str, options: LiveOptions | None = None, clock: Clock | None = None
    ) -> None:
        super().__init__(source, options, clock)
        self._budget = RestartBudget(self.limits.restarts, self.limits.window)
        self._lost_at: float | None = None
        # Frames that were taken from those that wait.
        self._taken = 0
        self._changes = FrameChanges()

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
            return bool(self._waiting or self._ended or self._events)

        with self._changed:
            timeout = max(0.0, self._deadline - self.clock.monotonic())
            self.clock.wait_for(self._changed, changed, timeout)
            # Events alone do not make up for a frame.
            is_late = self.clock.monotonic() >= self._deadline
            if not self._waiting and (self._ended is not None or is_late):
                self._note_end()
            waiting = self._waiting.take()
            self._taken += waiting is not None
            return waiting, self._ended, is_late

    def _note_end(self) -> None:
        """Note that the capture ended or stalled, and no frame waits. Called with the condition."""

    def pending(self) -> object | None:
        # Any thread may call it, so that what it reads may be old by a moment.
        has_ended = self._stopped or not self._threads or isinstance(self._ended, EndOfStream)
        is_late = not has_ended and self.clock.monotonic() >= self._deadline
        if len(self._waiting) == 0 and not is_late:
            return None
        return self._taken, self.reconnects

    @property
    def newest_only(self) -> bool:
        return not self.limits.keeps_all

    def still_valid(self, frame: Frame) -> Frame | None:
        captured = frame.captured_mono
        if frame.image is None or captured is None:
            return frame
        fault = self._too_old(self.clock.monotonic() - captured)
        if fault is None:
            return frame
        if not self.limits.keeps_all:
            return None
        return dataclasses.replace(frame, image=None, fault=fault)

    def _too_old(self, age: float) -> str | None:
        """Count a frame of this age in seconds, and say so, if it is too old to be judged."""
        if age <= self.limits.oldest_judged:
            return None
        with self._changed:
            self._count_stale(age)
        return f"its image was {age:.1f} s old; max_age is {self.limits.age_limit:g} s"

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
            self.dropped += self._waiting.clear()
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
        now = self.clock.monotonic()
        with self._changed:
            self._generation += 1
            if self._lost_at is None:
                self._lost_at = now
            lost_at = self._lost_at
        pause = self._budget.backoff()
        # An attempt may take so long that their number alone would never end it.
        is_lost = now - lost_at >= self.limits.window
        if is_lost or not self._budget.spend(now):
            raise CameraError(
                f"{cause}; given up after {self._budget.spent} attempts in "
                f"{now - lost_at:.0f} s: check cable, power and address"
            )
        attempt = f"attempt {self._budget.spent} of {self._budget.limit}"
        self.on_event(CameraEvent(name, f"{cause}; it is opened again ({attempt})"))
        if self._pause(pause):
            return
        self.reconnects += 1
        self._has_gap = self._has_worked
        self._start()

    def _pause(self, seconds: float) -> bool:
        """Wait before a restart; return True if the camera was stopped meanwhile."""
        with self._changed:
            return self.clock.wait_for(self._changed, lambda: self._stopped, seconds)

    def _report_events(self) -> None:
        with self._changed:
            waiting = self._events.take()
        for event in waiting:
            self.on_event(event)

    def _frame(self, waiting: Waiting) -> Frame | None:
        """Make the frame that is handed out.

        One that is too old or damaged is None, or a frame with a fault where none is left out.
        """
        fault = None
        image = waiting.payload
        if waiting.has_image:
            fault = self._too_old(self.clock.monotonic() - waiting.captured_mono)
        if fault is None and not isinstance(image, Frame):
            try:
                image = self._convert(image)
            except CorruptFrame as error:
                fault = f"the frame is damaged: {error}"
                with self._changed:
                    self._count_corrupt(error)
        if fault is not None:
            if not self.limits.keeps_all:
                return None
            image = waiting.without_image(self.source, fault).payload
        frame = waiting.frame(image, self.source)
        with self._changed:
            self._note_frame(frame)
        return frame

    def _note_frame(self, frame: Frame) -> None:
        """Add the events of a frame that is handed out. The caller holds the condition."""
        self._changes.note(frame, self._events)
        captured = frame.captured_mono
        # With `every_frame`, frames from before the failure are handed out after it.
        if self._lost_at is not None and (captured is None or captured >= self._lost_at):
            seconds = self.clock.monotonic() - self._lost_at
            self._lost_at = None
            self._events.add(events.RECOVERED, f"gives frames again after {seconds:.1f} s")
