"""Live sources: only the newest captured frame is stored.

A thread captures, and one slot holds the newest frame. With a plain read loop, a consumer of
10 frames/s on a camera of 25 frames/s is nine seconds late after fifteen seconds. Here a frame that
is not taken before the next one arrives is dropped and counted. A camera that stalls or fails is
opened again, within a budget of restarts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy.typing as npt

from flawline.cameras import Camera, CameraError, Frame
from flawline.cameras.clock import Clock, SystemClock

CLOSE_S = 2.0  # seconds that close() waits for the capture thread


class EndOfStream(Exception):
    """Raised by `_grab` when a live source ends on purpose."""


class RestartBudget:
    """At most `limit` restarts within `window` seconds; a broken camera is not retried for ever."""

    def __init__(self, limit: int, window: float) -> None:
        self.limit = limit
        self.window = window
        self._times: deque[float] = deque()

    def spend(self, now: float) -> bool:
        """Take one restart at the time `now`, in seconds; return False if the budget is used up."""
        while self._times and now - self._times[0] > self.window:
            self._times.popleft()
        if len(self._times) >= self.limit:
            return False
        self._times.append(now)
        return True

    def backoff(self) -> float:
        """Return the seconds to wait before the next attempt: 0.1 s, doubling to 2 s."""
        return float(min(2.0, 0.05 * 2 ** len(self._times)))


class LiveCamera(Camera):
    """Base class of live cameras. A subclass implements `_open`, `_grab` and `_release`.

    The three methods run on the capture thread. The constructor starts nothing: the thread starts
    with the iteration, so a subclass may set its fields before or after calling this constructor.

    `stall_s` is the time without a frame after which the camera is opened again, in seconds. Within
    `window_s` seconds it is opened again at most `restarts` times; then iterating raises
    CameraError.
    """

    live: ClassVar[bool] = True

    def __init__(
        self,
        source: str,
        stall_s: float = 3.0,
        restarts: int = 5,
        window_s: float = 60.0,
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.stall_s = stall_s
        self.captured = 0
        self.clock = clock or SystemClock()
        self._budget = RestartBudget(restarts, window_s)
        self._changed = threading.Condition()
        self._slot: Frame | None = None
        self._ended: Exception | None = None
        # Frames of an abandoned capture thread carry an older generation and are ignored.
        self._generation = 0
        self._threads: list[threading.Thread] = []

    @abstractmethod
    def _open(self) -> Any:
        """Open the source and return a handle. Raises CameraError."""

    @abstractmethod
    def _grab(self, handle: Any) -> Any:
        """Block for the next image and return it as a new array, or as a frame with its facts.

        A frame's index is set by the caller. None means that there is no image yet: it is called
        again if the capture is still wanted. Raises CameraError, or EndOfStream.
        """

    @abstractmethod
    def _release(self, handle: Any) -> None:
        """Free the handle."""

    def __iter__(self) -> Iterator[Frame]:
        # Iterating again continues the running capture.
        if not self._threads:
            self._start()
        while True:
            frame, ended, in_time = self._next()
            if frame is not None:
                yield frame
            elif self._stopped or isinstance(ended, EndOfStream):
                return
            elif ended is not None:
                self._restart(ended)
            elif not in_time:
                self._restart(CameraError(f"camera {self.source}: no frame for {self.stall_s:g} s"))

    def _next(self) -> tuple[Frame | None, Exception | None, bool]:
        """Wait for a frame, for the end of the capture, or until the camera is stalled."""

        def changed() -> bool:
            return self._slot is not None or self._ended is not None

        with self._changed:
            in_time = self.clock.wait_for(self._changed, changed, self.stall_s)
            frame = self._slot
            self._slot = None
            return frame, self._ended, in_time

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

    def _restart(self, cause: Exception) -> None:
        if not self._has_worked() and isinstance(self._ended, CameraError):
            # A camera that never worked is not tried again.
            raise cause
        # A thread that hangs in the driver cannot be stopped: it is abandoned, and its frames are
        # ignored.
        with self._changed:
            self._generation += 1
        pause = self._budget.backoff()
        if not self._budget.spend(self.clock.monotonic()):
            raise CameraError(
                f"{cause}; given up after {self._budget.limit} attempts: "
                f"check cable, power and address"
            )
        with self._changed:
            if self.clock.wait_for(self._changed, lambda: self._stopped, pause):
                return
        self.reconnects += 1
        self._start()

    def _has_worked(self) -> bool:
        """Tell whether the camera was ever usable."""
        return self.captured > 0

    def _start(self) -> None:
        with self._changed:
            if self._stopped:
                return
            self._slot = None
            self._ended = None
            generation = self._generation
        thread = threading.Thread(
            target=self._capture,
            args=(generation,),
            daemon=True,
            name=f"capture {self.source}",
        )
        alive = [other for other in self._threads if other.is_alive()]
        self._threads = [*alive, thread]
        thread.start()

    def _capture(self, generation: int) -> None:
        """Capture frames until the generation is over; report the end to the consumer."""
        handle: Any = None
        ended: Exception
        try:
            handle = self._open()
            running = True
            while running:
                running = self._put(generation, self._grab(handle))
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

    def _put(self, generation: int, grabbed: Any) -> bool:
        """Store what `_grab` returned; return False if this capture is over."""
        with self._changed:
            if generation != self._generation:
                return False
            self._store(grabbed)
            return True

    def _store(self, grabbed: npt.NDArray[Any] | Frame | None) -> None:
        """Put an image into the slot. The caller holds the condition."""
        if grabbed is None:
            return
        if self._slot is not None:
            self.dropped += 1
        self._slot = self._frame(grabbed)
        self.captured += 1
        self._changed.notify_all()

    def _frame(self, grabbed: npt.NDArray[Any] | Frame) -> Frame:
        if isinstance(grabbed, Frame):
            return dataclasses.replace(grabbed, index=self.captured)
        return Frame(self.source, self.captured, grabbed, captured_at=self.clock.time())
