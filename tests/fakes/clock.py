"""A clock for tests of live cameras: it moves only when a test or a sleeping thread moves it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class FakeClock:
    """Implements cameras.clock.Clock without waiting for real time.

    `on_wait` is called with the timeout at the start of every `wait_for`, by the waiting thread,
    which holds the condition. A test may move the clock there, or change what is waited for.
    """

    def __init__(self, on_wait: Callable[[float], None] | None = None) -> None:
        self.now = 100.0
        # The wall clock may be set to another time at any moment.
        self.wall_offset = 1_700_000_000.0
        self.on_wait = on_wait
        self._conditions: list[threading.Condition] = []

    def time(self) -> float:
        return self.wall_offset + self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move the clock, and wake every thread that waits."""
        self.now += seconds
        for condition in list(self._conditions):
            with condition:
                condition.notify_all()

    def wait_for(
        self, condition: threading.Condition, predicate: Callable[[], bool], timeout: float
    ) -> bool:
        deadline = self.now + timeout
        if condition not in self._conditions:
            self._conditions.append(condition)
        if self.on_wait is not None:
            self.on_wait(timeout)
        condition.wait_for(lambda: predicate() or self.now >= deadline)
        return predicate()
