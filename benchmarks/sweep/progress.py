"""What a sweep prints: one line for each finished cell, with the time that the others will take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from flawline.runtime.console import log


@dataclass
class Rest:
    """What a run has not done: what failed, with the reasons, and what it did not begin.

    left: cells that the budget left. untrained: cells that could not be measured for that.
    """

    failed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    untrained: list[str] = field(default_factory=list)


def is_over(deadline: float | None) -> bool:
    """Whether a deadline, as `time.time()` counts, has passed; None is no deadline."""
    return deadline is not None and time.time() > deadline


class CellCounter:
    """Counts the finished cells of a stage and estimates from them when the stage ends."""

    def __init__(self, stage: str, total: int) -> None:
        self.stage = stage
        self.total = total
        self.done = 0
        self._start = time.monotonic()

    def finished(self, cell: str, result: str) -> None:
        """Log a finished cell, what came of it, and the time that is left for this stage."""
        self.done += 1
        minutes = (time.monotonic() - self._start) / 60
        left = minutes / self.done * (self.total - self.done)
        rest = "" if self.done == self.total else f"; about {left:.1f} min left"
        log(f"[{self.done}/{self.total}] {self.stage} {cell}: {result}{rest}")
