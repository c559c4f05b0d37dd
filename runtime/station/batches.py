"""Batches across cameras: what waits is judged in one call of the engine, at most one of each."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence

from flawline.cameras import Frame
from flawline.runtime.ahead import Prepared
from flawline.runtime.signals import SIGNAL_S
from flawline.runtime.station.camera_reader import CameraReader

Batch = list[tuple[CameraReader, Prepared[Frame]]]


class SignalSafeEvent:
    """Like threading.Event, for one thread that waits; `wait` clears it.

    Unlike that one, a signal handler may set it that interrupts the thread in any line.
    """

    def __init__(self) -> None:
        # The only primitive of the standard library that is re-entrant for this purpose.
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Let the current or the next `wait` return."""
        self._queue.put(None)

    def clear(self) -> None:
        """Let the next `wait` sleep until the next `set`."""
        while not self._queue.empty():
            self._queue.get()

    def wait(self, timeout: float | None) -> None:
        """Sleep until `set` is called, or for so many seconds, at most SIGNAL_S."""
        try:
            self._queue.get(timeout=SIGNAL_S if timeout is None else min(timeout, SIGNAL_S))
        except queue.Empty:
            return


class Batches:
    """Forms batches of at most `largest` frames.

    A batch has what waits when its first frame is there, and what comes within `wait_s` seconds
    after that. Each camera has one frame in it, and where not all fit, they come round-robin: a
    fast camera gets no more than a slow one that has frames. `clock` returns seconds that never go
    backwards.
    """

    def __init__(
        self,
        readers: Sequence[CameraReader],
        largest: int,
        wait_s: float,
        changed: SignalSafeEvent,
        clock: Callable[[], float],
    ) -> None:
        self._readers = readers
        self.largest = largest
        self._wait_s = wait_s
        self._changed = changed
        self._clock = clock
        # The place of the camera that comes first in the next batch.
        self._next_first = 0
        # How many cameras had ended when `next` returned.
        self._ended = 0

    def next(
        self,
        most: int | None = None,
        until: float | None = None,
        paused: Callable[[CameraReader], bool] = lambda reader: False,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Batch:
        """Wait for a batch of at most `most` frames, without those of cameras that are `paused`.

        It is empty if all cameras have ended, at the time `until`, and if `stopped` returns true.
        It is also empty once when a camera ends, because a part may wait for its frames.
        """
        size = self.largest
        if most is not None:
            size = min(size, most)
        has_first = False
        while True:
            self._changed.clear()
            self._report()
            ended = sum(reader.ended for reader in self._readers)
            if stopped() or ended != self._ended:
                self._ended = ended
                return []
            open_readers = []
            for reader in self._readers:
                if not reader.ended and not paused(reader):
                    open_readers.append(reader)
            ready = sum(reader.ready for reader in open_readers)
            if ready >= min(size, len(open_readers)):
                break
            now = self._clock()
            if ready > 0 and not has_first:
                # The others have until then.
                has_first = True
                until = now + self._wait_s
            if until is not None and now >= until:
                break
            for reader in open_readers:
                if not reader.ready:
                    reader.want()
            self._changed.wait(None if until is None else until - now)
        return self._take(size, most, paused)

    def _report(self) -> None:
        for reader in self._readers:
            others = any(not other.ended for other in self._readers if other is not reader)
            reader.report(others)

    def _take(self, size: int, most: int | None, paused: Callable[[CameraReader], bool]) -> Batch:
        batch: Batch = []
        images = 0
        count = len(self._readers)
        first = self._next_first
        for step in range(count):
            place = (first + step) % count
            reader = self._readers[place]
            # Frames without an image take no time, and so they do not count against their camera.
            while images < size and len(batch) != most and reader.ready and not paused(reader):
                made = reader.take()
                if made is None:
                    break
                batch.append((reader, made))
                if made.item.image is not None:
                    images += 1
                    self._next_first = (place + 1) % count
                    break
        return batch
