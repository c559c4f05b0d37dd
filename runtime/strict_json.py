"""Strict reading of JSON objects: no key is ignored, and no value is converted silently."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from flawline import FlawlineError

# A larger number is refused, because an integer may exceed the range of a float.
LARGEST_NUMBER = 1e300

Value = TypeVar("Value")


class SchemaError(FlawlineError):
    """A JSON file does not follow its schema."""


def parse_json(data: bytes) -> dict[str, Any]:
    """Parse a JSON object strictly: NaN and infinite numbers are refused. Raises SchemaError."""

    def refuse_constant(text: str) -> NoReturn:
        raise ValueError(f"{text} is not a number")

    try:
        content = json.loads(data, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise SchemaError("is not a JSON object")
    return content


def to_json(content: Mapping[str, Any]) -> bytes:
    """Write a JSON object with sorted keys, one value a line."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
    return f"{text}\n".encode()


def finite(value: float, digits: int) -> float | None:
    """Round a number for JSON, which has neither NaN nor infinity; they become None."""
    if math.isfinite(value):
        return round(float(value), digits)
    return None


class StrictReader:
    """Takes typed values out of a JSON object, and refuses what is left over.

    `name` is put in front of every message; it is empty for the outermost object of a file.
    """

    def __init__(self, content: Mapping[str, Any], name: str = "") -> None:
        self._left = dict(content)
        self._prefix = f"{name}: " if name else ""

    def take(self, key: str, kind: type[Value]) -> Value:
        """Take a value of type int, float, str, list or dict.

        An integer is accepted for a float. Raises SchemaError.
        """
        if key not in self._left:
            self.refuse(f"{key} is missing")
        value: Any = self._left.pop(key)
        if not _has_type(value, kind):
            self.refuse(f"{key} is {value!r}, not of type {kind.__name__}")
        # The comparison is also false for NaN.
        if kind is float and not abs(value) < LARGEST_NUMBER:
            self.refuse(f"{key} is not between -{LARGEST_NUMBER} and {LARGEST_NUMBER}")
        # This turns an integer into a float; other values have the type already.
        return kind(value)  # type: ignore[call-arg]

    def take_count(self, key: str) -> int:
        """Take a whole number from 0 on; 0 if the key is missing."""
        if key not in self._left:
            return 0
        count = self.take(key, int)
        if count < 0:
            self.refuse(f"{key} is {count}, below 0")
        return count

    def take_flag(self, key: str) -> bool:
        """Take true or false."""
        value = self._left.pop(key, None)
        if not isinstance(value, bool):
            self.refuse(f"{key} is {value!r}, not true or false")
        return value

    def take_object(self, key: str) -> dict[str, Any] | None:
        """Take an object; None if the key is missing or null."""
        if self._left.get(key) is None:
            self._left.pop(key, None)
            return None
        return self.take(key, dict)

    def take_texts(self, key: str) -> tuple[str, ...]:
        """Take a list of texts that are not empty."""
        values = self.take(key, list)
        for value in values:
            if not isinstance(value, str) or not value:
                self.refuse(f"{key} holds {value!r}, which is not a name")
        return tuple(values)

    def finish(self) -> None:
        """Refuse the keys that were not taken."""
        if self._left:
            self.refuse(f"this version does not know {', '.join(sorted(self._left))}")

    def refuse(self, reason: str) -> NoReturn:
        raise SchemaError(f"{self._prefix}{reason}")


def _has_type(value: Any, kind: type) -> bool:
    """Tell whether a JSON value has a type.

    An integer is accepted as a float, a boolean never as a number.
    """
    # In Python, True is an integer.
    if isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, (int, float))
    return isinstance(value, kind)
