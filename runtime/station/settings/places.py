"""Where a value is in the text of a JSON file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

SPACE = re.compile(r"[ \t\r\n]*")
# The next key of an object, or the next item of an array.
SEPARATOR = re.compile(r"[ \t\r\n]*[,:]?[ \t\r\n]*")


def span_of(text: str, path: Sequence[str | int]) -> tuple[int, int]:
    """Return where the value at a path of keys and indices begins and ends in a valid JSON text.

    If the path leads on to something that is not there, it is the last value that is.
    """
    start = _after(SPACE, text, 0)
    for step in path:
        found = _step(text, start, step)
        if found is None:
            break
        start = found
    return start, _end(text, start)


def line_of(text: str, path: Sequence[str | int]) -> int:
    """Return the line, from 1 on, in which the value at a path begins; see `span_of`."""
    return text.count("\n", 0, span_of(text, path)[0]) + 1


def _step(text: str, start: int, step: str | int) -> int | None:
    """Return where the value of a key or an index begins in the value at `start`."""
    if text[start] != ("{" if isinstance(step, str) else "["):
        return None
    index = 0
    place = _after(SPACE, text, start + 1)
    while text[place] not in "]}":
        key: str | int = index
        if isinstance(step, str):
            key, place = json.JSONDecoder().raw_decode(text, place)
            place = _after(SEPARATOR, text, place)
        if key == step:
            return place
        place = _after(SEPARATOR, text, _end(text, place))
        index += 1
    return None


def _end(text: str, start: int) -> int:
    return json.JSONDecoder().raw_decode(text, start)[1]


def _after(pattern: re.Pattern[str], text: str, place: int) -> int:
    match = pattern.match(text, place)
    assert match is not None
    return match.end()
