"""Strict reading of JSON objects: no key is ignored, and no value is converted silently."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from flawline import FlawlineError

# A larger number is refused: scores are float32, and an integer may exceed the range of a float.
LARGEST_NUMBER = 1e38
LARGEST_INTEGER = 10**9
# Characters of a value that are quoted in a message.
LONGEST_QUOTE = 200

Value = TypeVar("Value")


class SchemaError(FlawlineError):
    """A file of a bundle does not follow its schema."""


class _NotStrict(ValueError):
    """The text is JSON as Python reads it, but not as the standard has it."""


def parse_json(data: bytes) -> dict[str, Any]:
    """Parse a JSON object strictly: NaN, infinite numbers and repeated keys are refused.

    Raises SchemaError.
    """
    try:
        content = json.loads(
            data,
            parse_float=_finite,
            parse_constant=_refuse_constant,
            object_pairs_hook=_object_of_pairs,
        )
    except _NotStrict as error:
        raise SchemaError(f"is not valid JSON ({one_line(error)})") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise SchemaError(f"is not valid JSON ({place})") from error
    except UnicodeDecodeError as error:
        raise SchemaError("is not valid JSON (it is not UTF-8 text)") from error
    except RecursionError as error:
        raise SchemaError("is nested too deeply") from error
    except ValueError as error:
        # Python limits the digits of an integer that it converts.
        raise SchemaError("is not valid JSON (a number has too many digits)") from error
    if not isinstance(content, dict):
        raise SchemaError("is not a JSON object")
    return content


def _finite(text: str) -> float:
    value = float(text)
    # As 1e400, which JSON may hold and no float.
    if math.isinf(value):
        raise _NotStrict(f"{one_line(text)} is too large")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise _NotStrict(f"{text} is not a number")


def _object_of_pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; without this check, the last of several values of a key would count."""
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = Counter(key for key, _value in pairs)
        key = max(counts, key=counts.__getitem__)
        raise _NotStrict(f"the key {key!r} is there {counts[key]} times")
    return content


def checksum(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON object, whatever its layout. Raises SchemaError."""
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except RecursionError as error:
        raise SchemaError("is nested too deeply") from error
    return hashlib.sha256(text.encode()).hexdigest()


def one_line(value: object) -> str:
    """Return the text of a value without line breaks, short enough to be quoted in a message."""
    text = str(value)
    if len(text) > LONGEST_QUOTE:
        text = f"{text[:LONGEST_QUOTE]}..."
    characters = []
    for character in text:
        # repr() escapes what cannot be printed.
        characters.append(character if character.isprintable() else repr(character)[1:-1])
    return "".join(characters)


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
        if not has_type(value, kind):
            self.refuse(f"{key} is {one_line(repr(value))}, not of type {kind.__name__}")
        # The comparison is also false for NaN.
        if kind is float and not abs(value) < LARGEST_NUMBER:
            self.refuse(f"{key} is not between -{LARGEST_NUMBER} and {LARGEST_NUMBER}")
        if kind is int and not abs(value) <= LARGEST_INTEGER:
            self.refuse(f"{key} is not between -{LARGEST_INTEGER} and {LARGEST_INTEGER}")
        # This turns an integer into a float; other values have the type already.
        return kind(value)  # type: ignore[call-arg]

    def has(self, key: str) -> bool:
        """Tell whether there is a value that was not taken yet."""
        return key in self._left

    def take_interval(self, key: str) -> tuple[float, float]:
        """Take a pair of rising numbers from 0 to 1."""
        values = self.take(key, list)
        numbers = []
        for value in values:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                numbers.append(value)
        if len(values) != 2 or len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] <= 1:
            self.refuse(f"{key} is not a pair of rising numbers from 0 to 1")
        return float(numbers[0]), float(numbers[1])

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
            self.refuse(f"{key} is {one_line(repr(value))}, not true or false")
        return value

    def take_optional(self, key: str, kind: type[Value]) -> Value | None:
        """Take a value as `take` does; None if the key is missing or null."""
        if self._left.get(key) is None:
            self._left.pop(key, None)
            return None
        return self.take(key, kind)

    def take_object(self, key: str) -> dict[str, Any] | None:
        """Take an object; None if the key is missing or null."""
        return self.take_optional(key, dict)

    def take_texts(self, key: str) -> tuple[str, ...]:
        """Take a list of texts that are not empty."""
        values = self.take(key, list)
        for value in values:
            if not isinstance(value, str) or not value:
                self.refuse(f"{key} holds {one_line(repr(value))}, which is not a name")
        return tuple(values)

    def finish(self) -> None:
        """Refuse the keys that were not taken."""
        if self._left:
            self.refuse(f"this version does not know {', '.join(sorted(self._left))}")

    def refuse(self, reason: str) -> NoReturn:
        """Raise SchemaError; the reason may hold names from the file."""
        raise SchemaError(f"{self._prefix}{one_line(reason)}")


def has_type(value: Any, kind: type) -> bool:
    """Tell whether a JSON value has a type.

    An integer is accepted as a float, a boolean never as a number.
    """
    # In Python, True is an integer.
    if isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, (int, float))
    return isinstance(value, kind)
