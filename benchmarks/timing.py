"""Timing that means something: warm-up first, every call timed, the distribution told."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    """Median, p95 and p99 in milliseconds, and FPS of the median."""
    p50, p95, p99 = (float(v) for v in np.percentile(milliseconds, (50, 95, 99)))
    return {
        "p50_ms": round(p50, 3),
        "p95_ms": round(p95, 3),
        "p99_ms": round(p99, 3),
        "fps": round(1e3 / p50, 1),
    }


def alternate(calls: Mapping[str, Callable[[], Any]], rounds: int = 5, repeats: int = 5) -> dict[str, float]:
    """Median milliseconds of each call, measured in turns (A B A B), so that a noisy machine is noisy for all."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(repeats):
                start = time.perf_counter()
                call()
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}
