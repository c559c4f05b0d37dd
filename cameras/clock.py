"""The clock of live cameras. It is an argument, so that tests need not wait for real time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Time and waiting."""

    def time(self) -> float:
        """Return the wall clock in Unix seconds; it may jump."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go backwards, for ages and deadlines."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait in the calling thread."""
        ...

    def wait_for(
        self, condition: threading.Condition, predicate: Callable[[], bool], timeout: float
    ) -> bool:
        """Wait until the predicate is true; return False after `timeout` seconds.

        The caller holds the condition, as for threading.Condition.wait_for.
        """
        ...


class SystemClock:
    """The clock of the operating system."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def wait_for(
        self, condition: threading.Condition, predicate: Callable[[], bool], timeout: float
    ) -> bool:
        # A longer one, also infinity, would be an OverflowError.
        return condition.wait_for(predicate, min(timeout, threading.TIMEOUT_MAX))
