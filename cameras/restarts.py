"""How often, and after which pause, a live camera is opened again after a failure."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

SHORTEST_S = 0.1
LONGEST_S = 2.0


def backoff(
    failures: int, longest: float = LONGEST_S, jitter: Callable[[], float] = random.random
) -> float:
    """Return the seconds to wait before the next attempt, after so many failures.

    The pause doubles from 0.1 s to `longest`. A random part of up to half of it is left out, so
    that those that failed together do not try again all at once.
    """
    # The exponent is limited, because a float cannot hold 2 to the power of 1024.
    pause = min(longest, SHORTEST_S * 2 ** min(failures, 16))
    return float(pause * (1 - jitter() / 2))


class RestartBudget:
    """At most `limit` restarts within `window` seconds; a broken camera is not retried for ever.

    `jitter` returns numbers from 0 to 1.
    """

    def __init__(
        self, limit: int, window: float, jitter: Callable[[], float] = random.random
    ) -> None:
        self.limit = limit
        self.window = window
        self._jitter = jitter
        self._times: deque[float] = deque()

    @property
    def spent(self) -> int:
        """Restarts within the last `window` seconds, as of the last call of `spend`."""
        return len(self._times)

    def spend(self, now: float) -> bool:
        """Take one restart at the time `now`, in seconds; return False if the budget is used up."""
        while self._times and now - self._times[0] > self.window:
            self._times.popleft()
        if len(self._times) >= self.limit:
            return False
        self._times.append(now)
        return True

    def backoff(self) -> float:
        """Return the seconds to wait before the next attempt; see the function `backoff`."""
        return backoff(len(self._times), jitter=self._jitter)
