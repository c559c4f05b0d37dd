"""The newest of many values, for percentiles over a bounded window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

WINDOW = 10_000  # values; a run may last for years


class RecentValues:
    """Keeps the newest `size` values in memory that is taken at once and does not grow."""

    def __init__(self, size: int = WINDOW) -> None:
        # Not zeros, whose memory the system provides when it is first written to.
        self._values = np.full(size, np.nan)
        self._count = 0

    def __len__(self) -> int:
        return min(self._count, len(self._values))

    def add(self, value: float) -> None:
        """Add a value in the place of the oldest one, if there are as many as are kept."""
        self._values[self._count % len(self._values)] = value
        self._count += 1

    def percentiles(self, percents: Sequence[float]) -> npt.NDArray[np.float64]:
        """Return percentiles of the values that are kept, of which there must be some."""
        found: npt.NDArray[np.float64] = np.percentile(self._values[: len(self)], percents)
        return found
