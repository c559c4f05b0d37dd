"""How many of the last frames may be beyond the good images by chance: exact, for any quantity.

Of n good images and m further ones that are like them, all orders of a quantity are equally likely,
whatever its distribution. So the number of further ones above the k-th largest good value has a
negative hypergeometric distribution, which is that of the precedence test (Nelson, "Tables for a
precedence life test", Technometrics 1963).
"""

from __future__ import annotations

from functools import lru_cache
from math import comb


def chance_beyond(good: int, beyond: int, frames: int, count: int) -> float:
    """Return the chance that `count` or more of `frames` further values are above a good one.

    That is the `beyond`-th largest of `good` values. All are exchangeable; 1 <= beyond <= good.
    """
    # If that good value has `count` further ones above it, at most `beyond` - 1 good ones are among
    # the largest `drawn` values of all.
    drawn = count + beyond - 1
    ways = 0
    for further in range(count, min(drawn, frames) + 1):
        ways += comb(frames, further) * comb(good, drawn - further)
    return ways / comb(good + frames, drawn)


@lru_cache(maxsize=4096)
def critical_count(good: int, beyond: int, frames: int, rate: float) -> int | None:
    """Return the smallest count whose chance is at most `rate`; None if even all frames exceed it.

    The arguments are as of `chance_beyond`.
    """
    low = 1
    high = frames + 1
    while low < high:
        middle = (low + high) // 2
        if chance_beyond(good, beyond, frames, middle) <= rate:
            high = middle
        else:
            low = middle + 1
    return None if low > frames else low
