"""Timing that means something: warm-up first, every call timed, the distribution told."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

Key = TypeVar("Key")


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    """Median, p95 and p99 in milliseconds, and FPS of the median."""
    p50, p95, p99 = (float(v) for v in np.percentile(milliseconds, (50, 95, 99)))
    return {
        "p50_ms": round(p50, 3),
        "p95_ms": round(p95, 3),
        "p99_ms": round(p99, 3),
        "fps": round(1e3 / p50, 1),
    }


def alternate(
    calls: Mapping[Key, Callable[[], Any]], rounds: int = 5, repeats: int = 5, settle_s: float = 0.0
) -> dict[Key, float]:
    """Median milliseconds of each call, measured in turns (A B A B), so that a noisy machine is noisy for all.

    Every turn first repeats its call for `settle_s` seconds untimed: the threads of the library before it may still
    be spinning, and would be charged to the next.
    """
    for call in calls.values():
        call()
    times: dict[Key, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            settled = time.perf_counter() + settle_s
            while time.perf_counter() < settled:
                call()
            for _ in range(repeats):
                start = time.perf_counter()
                call()
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}
