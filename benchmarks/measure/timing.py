"""Timing of several calls in one run, so that noise of the machine affects all of them equally."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from flawline.runtime.timing import time_calls

Key = TypeVar("Key")


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """Return median, 95th and 99th percentile in milliseconds, and the FPS of the median."""
    p50, p95, p99 = np.percentile(milliseconds, (50, 95, 99)).tolist()
    return {
        "p50_ms": round(p50, 3),
        "p95_ms": round(p95, 3),
        "p99_ms": round(p99, 3),
        "fps": round(1e3 / p50, 1),
    }


def slowest_and_fastest(
    milliseconds: Sequence[float], repeats: int
) -> tuple[float, float] | tuple[None, None]:
    """Return the lowest and the highest FPS of the repeats of a measurement.

    `milliseconds` holds `repeats` successive times of each image. The FPS of a repeat are those of
    the median of its images. Both are None for a single repeat, which has no spread.
    """
    if repeats < 2:
        return None, None
    medians = np.median(np.reshape(milliseconds, (-1, repeats)), axis=0)
    return round(1e3 / float(medians.max()), 1), round(1e3 / float(medians.min()), 1)


def alternate(
    calls: Mapping[Key, Callable[[], object]],
    rounds: int = 5,
    repeats: int = 5,
    settle_s: float = 0.0,
) -> dict[Key, float]:
    """Return the median milliseconds of each call over `rounds` turns of `repeats` calls.

    The calls take turns (A B A B), so that a noisy machine is noisy for all of them. Every turn
    begins with `settle_s` seconds of untimed calls: the threads of the library that ran before may
    still be spinning and would slow down the first calls of the next one.
    """
    times: dict[Key, list[float]] = {}
    for name, call in calls.items():
        # The first call of a library allocates and chooses kernels.
        call()
        times[name] = []
    for _ in range(rounds):
        for name, call in calls.items():
            if settle_s > 0:
                # The times of these calls are dropped.
                time_calls(call, warm_up=0, seconds=settle_s)
            times[name] += time_calls(call, warm_up=0, repeats=repeats)
    medians = {}
    for name, values in times.items():
        medians[name] = statistics.median(values)
    return medians
