"""Numbers of a manifest: how they are rounded, and how lists of them are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from flawline.runtime.strict_json import StrictReader, has_type, one_line

DIGITS = 6  # significant


def short(value: Any) -> float:
    """Round a number to as many digits as the manifest keeps."""
    return float(f"{float(value):.{DIGITS}g}")


def shortened(values: Sequence[Any] | npt.NDArray[Any]) -> tuple[float, ...]:
    """Round numbers to as many digits as the manifest keeps."""
    return tuple(short(value) for value in values)


def numbers_of(reader: StrictReader, values: Any, count: int) -> tuple[float, ...]:
    """Return a list of so many finite numbers. Raises SchemaError."""
    valid = isinstance(values, list) and len(values) == count
    if not valid or not all(has_type(value, float) and abs(value) < 1e38 for value in values):
        reader.refuse(f"{one_line(repr(values))} is not a list of {count} numbers")
    return tuple(float(value) for value in values)
