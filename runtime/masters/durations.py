"""Durations as they are written on a command line, such as 12h."""

from __future__ import annotations

import argparse
import re

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
NAMES = {"s": "s", "m": "min", "h": "h", "d": "d"}
LONGEST_S = 10 * 366 * 86400


def duration_argument(text: str) -> float:
    """Return seconds: the argparse type of a number with the unit s, m, h or d."""
    match = DURATION.fullmatch(text)
    seconds = 0.0
    if match is not None:
        seconds = float(match[1]) * SECONDS[match[2]]
    if not 0 < seconds <= LONGEST_S:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a duration above 0, such as 30m, 12h or 2d"
        )
    return seconds


def describe_duration(seconds: float) -> str:
    """Return a duration in its largest unit with a value of at least 1, such as "12.5 h"."""
    unit = "s"
    for other, size in SECONDS.items():
        if seconds >= size:
            unit = other
    return f"{seconds / SECONDS[unit]:.3g} {NAMES[unit]}"
