"""How numbers are written in the bundle report."""

from __future__ import annotations

NARROW_SPACE = "\u202f"


def number(value: float) -> str:
    """Return a score or a threshold with four significant digits."""
    return f"{value:.4g}"


def percent(fraction: float) -> str:
    """Return a fraction as a percentage with one decimal, or one significant digit below 0.1 %."""
    if fraction >= 0.001:
        digits = f"{100 * fraction:.1f}".removesuffix(".0")
    else:
        digits = f"{100 * fraction:.1g}"
    return digits + NARROW_SPACE + "%"


def percent_range(interval: tuple[float, float]) -> str:
    """Return an interval of fractions as "low % to high %"."""
    low, high = interval
    return f"{percent(low)} to {percent(high)}"


def milliseconds(value: float) -> str:
    """Return a duration with two or three significant digits."""
    if value < 10:
        return f"{value:.1f}{NARROW_SPACE}ms"
    return f"{value:.0f}{NARROW_SPACE}ms"


def megabytes(size: int) -> str:
    """Return a number of bytes in MB (10^6 bytes) with one decimal."""
    return f"{size / 1e6:.1f}{NARROW_SPACE}MB"
