"""Batches across cameras: what waits is judged in one call of the engine, at most one of each."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence

from flawline.cameras import Frame
from flawline.runtime.station.lanes import Lane

Batch = list[tuple[Lane, Frame]]


class Wakes:
    """Lets the loop sleep until something has changed. Any thread and a signal handler wake it."""

    def __init__(self) -> None:
        # Unlike a lock or an event, it may be used by a signal handler that interrupts its user.
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()

    def wake(self) -> None:
        """Let the current or the next `wait` return."""
        self._queue.put(None)

    def forget(self) -> None:
        """Let the next `wait` sleep until the next `wake`."""
        while not self._queue.empty():
            self._queue.get()

    def wait(self, timeout: float | None) -> None:
        """Sleep until `wake` is called, or for so many seconds."""
        try:
            self._queue.get(timeout=timeout)
        except queue.Empty:
            return


class Batches:
    """Forms batches of at most `largest` frames.

    A batch has what waits when its first frame is there, and what comes within `wait_s` seconds
    after that. Each camera has one frame in it, and where not all fit, they take turns: a fast
    camera gets no more than a slow one that has frames. `clock` returns seconds that never go
    backwards.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        largest: int,
        wait_s: float,
        wakes: Wakes,
        clock: Callable[[], float],
    ) -> None:
        self._lanes = lanes
        self._largest = largest
        self._wait_s = wait_s
        self._wakes = wakes
        self._clock = clock
        self._turn = 0
        # How many cameras had ended when `next` returned.
        self._ended = 0

    def next(
        self,
        most: int | None = None,
        until: float | None = None,
        held: Callable[[Lane], bool] = lambda lane: False,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Batch:
        """Wait for a batch of at most `most` frames, without those of cameras that are `held`.

        It is empty if all cameras have ended, at the time `until`, and if `stopped` returns true.
        It is also empty once when a camera ends, because a part may wait for its frames.
        """
        size = self._largest
        if most is not None:
            size = min(size, most)
        has_first = False
        while True:
            self._wakes.forget()
            self._report()
            ended = sum(lane.ended for lane in self._lanes)
            if stopped() or ended != self._ended:
                self._ended = ended
                return []
            open_lanes = [lane for lane in self._lanes if not lane.ended and not held(lane)]
            ready = sum(lane.ready for lane in open_lanes)
            if ready >= min(size, len(open_lanes)):
                break
            now = self._clock()
            if ready > 0 and not has_first:
                # The others have until then.
                has_first = True
                until = now + self._wait_s
            if until is not None and now >= until:
                break
            self._wakes.wait(None if until is None else until - now)
        return self._take(size, most, held)

    def _report(self) -> None:
        for lane in self._lanes:
            others = any(not other.ended for other in self._lanes if other is not lane)
            lane.report(others)

    def _take(self, size: int, most: int | None, held: Callable[[Lane], bool]) -> Batch:
        batch: Batch = []
        images = 0
        count = len(self._lanes)
        first = self._turn
        for step in range(count):
            place = (first + step) % count
            lane = self._lanes[place]
            # Frames without an image take no time, and so no camera's turn.
            while images < size and len(batch) != most and lane.ready and not held(lane):
                frame = lane.take()
                if frame is None:
                    break
                batch.append((lane, frame))
                if frame.image is not None:
                    images += 1
                    self._turn = (place + 1) % count
                    break
        return batch
