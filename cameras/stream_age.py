"""How old a frame of a network stream is, from its time stamp and the time of its arrival."""

from __future__ import annotations

from collections import deque

# The delay of the fastest frame within this time counts as no delay. A longer time would add up
# what the camera's clock gains or loses: one that is 0.4 % slow loses 0.12 s.
WINDOW_S = 30.0
BUCKETS = 10


class StreamAge:
    """Relates the time stamps of one stream to the monotonic clock of this machine.

    The two clocks have an unknown distance. The frame with the smallest distance between its time
    stamp and its arrival had the shortest way, and any other frame is as old as it came later than
    that. A delay that all frames share is not noticed.

    `arrives_late` is true for a decoder that gives a frame only when the next one has arrived.
    """

    def __init__(self, arrives_late: bool = False) -> None:
        self._arrives_late = arrives_late
        # The smallest distances of short stretches of time, with the start of each.
        self._smallest: deque[tuple[float, float]] = deque()
        self._last: float | None = None
        self._step: float | None = None

    def captured_mono(self, stamp: float | None, arrival: float) -> float:
        """Return when a frame was captured, in monotonic seconds.

        `stamp` is its time stamp in seconds of the camera's clock, and `arrival` the monotonic time
        at which it was decoded, which is also the result for a frame without a time stamp.
        """
        if stamp is None:
            return arrival
        self._note_step(stamp)
        self._note_distance(arrival, arrival - stamp)
        distance = min(smallest for _, smallest in self._smallest)
        captured = stamp + distance
        if self._arrives_late and self._step is not None:
            captured -= self._step
        return captured

    def _note_step(self, stamp: float) -> None:
        """Record the shortest time between two frames; forget all if the camera's clock was set."""
        if self._last is not None:
            step = stamp - self._last
            if step < 0:
                self._smallest.clear()
                self._step = None
            elif step > 0 and (self._step is None or step < self._step):
                self._step = step
        self._last = stamp

    def _note_distance(self, arrival: float, distance: float) -> None:
        while self._smallest and arrival - self._smallest[0][0] > WINDOW_S:
            self._smallest.popleft()
        if self._smallest and arrival - self._smallest[-1][0] < WINDOW_S / BUCKETS:
            start, smallest = self._smallest[-1]
            self._smallest[-1] = (start, min(smallest, distance))
        else:
            self._smallest.append((arrival, distance))
