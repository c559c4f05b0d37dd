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

    The call is first made `warm_up` times without being timed. Then it is repeated `repeats` times or, if that is
    None, until `seconds` have passed, and at least once.
    """
    if (repeats is None) == (seconds is None):
        raise ValueError("give either repeats or seconds")
    for _ in range(warm_up):
        call()
    deadline = time.perf_counter() + (seconds or 0.0)
    times: list[float] = []
    done = False
    while not done:
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        times.append(1e3 * (end - start))
        if repeats is None:
            done = end >= deadline
        else:
            done = len(times) >= repeats
    return times
