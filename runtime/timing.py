"""Timing of calls, as every command and benchmark measures them."""

from __future__ import annotations

import time
from collections.abc import Callable


def time_calls(
    call: Callable[[], object],
    warm_up: int = 1,
    repeats: int | None = None,
    seconds: float | None = None,
) -> list[float]:
    """Time a call repeatedly; return the milliseconds of each repetition.

    The call is first made `warm_up` times without being timed. Then it is repeated `repeats` times
    or, if that is None, until `seconds` have passed, and at least once.
    """
    if (repeats is None) == (seconds is None):
        raise ValueError("give either repeats or seconds")
    for _ in range(warm_up):
        call()
    times: list[float] = []
    if seconds is None:
        for _ in range(repeats or 0):
            times.append(_milliseconds(call))
        return times
    # A slow call is timed at least once, also when it takes longer than `seconds`.
    deadline = time.perf_counter() + seconds
    while not times or time.perf_counter() < deadline:
        times.append(_milliseconds(call))
    return times


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)
