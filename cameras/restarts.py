"""How often, and after which pause, a live camera is opened again after a failure."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

SHORTEST_S = 0.1
LONGEST_S = 2.0


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
        """Return the seconds to wait before the next attempt.

        The pause doubles from 0.1 s to 2 s. A random part of up to half of it is left out, so that
        cameras that failed together, as those of one recorder, are not opened all at once.
        """
        # The exponent is limited, because a float cannot hold 2 to the power of 1024.
        pause = min(LONGEST_S, SHORTEST_S * 2 ** min(len(self._times), 16))
        return float(pause * (1 - self._jitter() / 2))
