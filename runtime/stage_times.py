"""Where each millisecond of a stream goes: the times of its stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from flawline.runtime.recent_values import RecentValues

# In the order of a frame, with the thread that a stage belongs to.
STAGES = {
    "capture": "waiting for the camera, and decoding",
    "prepare": "the input of the engine",
    "idle": "the engine waits for an input",
    "engine": "the engine computes",
    "blocked": "the engine waits for the outputs",
    "verdict": "verdict, copy of the map, regions",
    "outputs": "all outputs",
}


class StageTimes:
    """Collects the times of the stages of STAGES. Each stage belongs to one thread at a time.

    `clock` returns seconds that never go backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start = clock()
        self._recent: dict[str, RecentValues] = {}
        self._total: dict[str, float] = {}
        for stage in STAGES:
            self._recent[stage] = RecentValues()
            self._total[stage] = 0.0

    def note(self, stage: str, seconds: float) -> None:
        """Add the time of one frame, or of one call of the engine."""
        self._recent[stage].add(seconds)
        self._total[stage] += seconds

    def summary(self) -> dict[str, dict[str, Any]]:
        """Return for each stage that occurred: p50_ms, p95_ms and its share of the time so far.

        The shares add up to more than 1, because the stages of different frames overlap.
        """
        duration = max(self._clock() - self._start, 1e-9)
        stages = {}
        for stage, recent in self._recent.items():
            if not recent:
                continue
            p50, p95 = recent.percentiles((50, 95))
            stages[stage] = {
                "p50_ms": round(1e3 * float(p50), 3),
                "p95_ms": round(1e3 * float(p95), 3),
                "share": round(self._total[stage] / duration, 4),
            }
        return stages


def stage_table(stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table of what `StageTimes.summary` returns."""
    lines = [f"{'stage':<10}{'median ms':>12}{'p95 ms':>12}{'share of run':>14}"]
    for stage, times in stages.items():
        numbers = f"{times['p50_ms']:>12.3f}{times['p95_ms']:>12.3f}{times['share']:>14.2%}"
        lines.append(f"{stage:<10}{numbers}  {STAGES[stage]}")
    return lines
