"""Live sources: a thread captures, one slot holds the newest frame, the consumer never sees a backlog.

A plain read loop at 10 frames/s on a 25 frames/s camera is ten seconds late after fifteen. Here a frame that nobody
took in time is dropped and counted; a camera that stalls or fails is opened again within a budget, then given up.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy.typing as npt

from flawline.cameras import CameraError, Frame

CLOSE_S = 2.0  # seconds that close() waits for the capture thread


class EndOfStream(Exception):
    """Raised by `_grab` where a live source ends on purpose."""


class RestartBudget:
    """At most `limit` restarts in `window` seconds: a broken camera must be told, not retried for ever."""

    def __init__(self, limit: int, window: float) -> None:
        self.limit, self.window = limit, window
        self._times: deque[float] = deque()

    def spend(self, now: float) -> bool:
        """Take one restart; False where the budget is used up."""
        while self._times and now - self._times[0] > self.window:
            self._times.popleft()
        if len(self._times) >= self.limit:
            return False
        self._times.append(now)
        return True

    def backoff(self) -> float:
        """Seconds to wait before the next attempt: 0.1 s doubling to 2 s."""
        return float(min(2.0, 0.05 * 2 ** len(self._times)))


class NewestFrame:
    """Base of live cameras. A subclass gives `_open`, `_grab` and `_release`; they run on the capture thread.

    `_open` returns a handle or raises CameraError; `_grab` blocks for the next image (uint8 [h, w, 3] or [h, w], a
    new array each time) or raises CameraError or EndOfStream; `_release` frees the handle.
    """

    live: ClassVar[bool] = True
    untested: ClassVar[str | None] = None

    def __init__(
        self, source: str, stall_s: float = 3.0, restarts: int = 5, window_s: float = 60.0
    ) -> None:
        self.source, self.stall_s = source, stall_s
        self.captured = self.dropped = self.reconnects = 0
        self._budget = RestartBudget(restarts, window_s)
        self._changed = threading.Condition()
        self._slot: Frame | None = None
        self._ended: Exception | None = None
        self._generation = 0
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._start()

    def _open(self) -> Any:
        raise NotImplementedError

    def _grab(self, handle: Any) -> npt.NDArray[Any]:
        raise NotImplementedError

    def _release(self, handle: Any) -> None:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with self._changed:
                due = self._changed.wait_for(
                    lambda: self._slot is not None or self._ended, self.stall_s
                )
                frame, self._slot = self._slot, None
                ended = self._ended
            if frame is not None:
                yield frame
            elif self._closed or isinstance(ended, EndOfStream):
                return
            elif ended is not None or not due:
                self._restart(
                    ended or CameraError(f"camera {self.source}: no frame for {self.stall_s:g} s")
                )

    def stop(self) -> None:
        """End the iteration now, and the capture with its next frame. Does not wait: a signal handler may call it."""
        with self._changed:
            self._closed = True
            self._generation += 1
            self._ended = EndOfStream()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop, and wait until the camera is released; at most CLOSE_S, since a driver may hang for ever."""
        self.stop()
        # A thread inside OpenCV when the interpreter ends takes the process down with it (std::terminate).
        deadline = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _restart(self, cause: Exception) -> None:
        if not self.captured and isinstance(self._ended, CameraError):
            raise cause  # it never worked: a wrong address is told at once
        # A thread that hangs in the driver cannot be stopped: it is left behind, and its frames are ignored.
        with self._changed:
            self._generation += 1
        pause = self._budget.backoff()
        if not self._budget.spend(time.monotonic()):
            raise CameraError(
                f"{cause}; given up after {self._budget.limit} attempts: check cable, power and address"
            )
        with self._changed:
            if self._changed.wait_for(lambda: self._closed, pause):
                return
        self.reconnects += 1
        self._start()

    def _start(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._ended = self._slot = None
            generation = self._generation
        name = f"capture {self.source}"
        thread = threading.Thread(target=self._capture, args=(generation,), daemon=True, name=name)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def _capture(self, generation: int) -> None:
        handle: Any = None
        ended: Exception
        try:
            handle = self._open()
            while self._put(generation, self._grab(handle)):
                pass
            return
        except (CameraError, EndOfStream) as error:
            ended = error
        except (
            Exception
        ) as error:  # whatever a driver raises must reach the consumer, not die with the thread
            ended = CameraError(f"camera {self.source}: {type(error).__name__}: {error}")
        finally:
            if handle is not None:
                with contextlib.suppress(
                    Exception
                ):  # a driver that failed may fail again; the first cause counts
                    self._release(handle)
        with self._changed:
            if generation == self._generation:
                self._ended = ended
                self._changed.notify_all()

    def _put(self, generation: int, image: npt.NDArray[Any]) -> bool:
        with self._changed:
            if generation != self._generation:
                return False
            self.dropped += self._slot is not None
            self._slot = Frame(self.source, self.captured, image)
            self.captured += 1
            self._changed.notify_all()
            return True
