"""One line of an audit log, and how it is chained to the line before it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import pwd
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from flawline.runtime.console import printable
from flawline.runtime.strict_json import SchemaError, StrictReader, parse_json

# The `what` of the line after one that was cut off, as by a power failure.
REPAIR = "repair"
# The `what` of a line about a check of master parts.
MASTERS = "masters"
# Lines that state no change: what is logged stays as it was.
NO_CHANGE = (REPAIR, MASTERS)

State = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A change: at what time, by which user on which host, of what, from which state to which.

    `time` is in UTC, as of ISO 8601. `old` and `new` are JSON objects, None where there was or is
    nothing. `previous` is the SHA-256 of the line before it, None for the first line of a log.
    """

    time: str
    user: str
    host: str
    what: str
    old: State | None
    new: State | None
    previous: str | None
    note: str | None = None


def new_entry(
    what: str, old: State | None, new: State | None, previous: str | None, note: str | None
) -> Entry:
    """Return an entry of this moment, by the user of this process."""
    time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return Entry(time, _user(), printable(platform.node()), what, old, new, previous, note)


def _user() -> str:
    """Return the name of the user; the environment, which anyone may set, is not asked."""
    number = os.getuid()
    try:
        return printable(pwd.getpwuid(number).pw_name)
    except KeyError:
        # As in a container that is run for a user of the host.
        return str(number)


def to_line(entry: Entry) -> bytes:
    """Return the line of an entry, without its line break."""
    content: dict[str, Any] = {
        "time": entry.time,
        "user": entry.user,
        "host": entry.host,
        "what": entry.what,
        "from": entry.old,
        "to": entry.new,
        "previous": entry.previous,
    }
    if entry.note is not None:
        content["note"] = printable(entry.note)
    return json.dumps(content, allow_nan=False).encode()


def from_line(line: bytes) -> Entry:
    """Read an entry. Raises SchemaError for a line that is none."""
    reader = StrictReader(parse_json(line))
    if not reader.has("previous"):
        reader.refuse("previous is missing")
    entry = Entry(
        time=reader.take("time", str),
        user=reader.take("user", str),
        host=reader.take("host", str),
        what=reader.take("what", str),
        old=reader.take_object("from"),
        new=reader.take_object("to"),
        previous=reader.take_optional("previous", str),
        note=reader.take_optional("note", str),
    )
    reader.finish()
    return entry


def read_entry(line: bytes) -> Entry | None:
    """Return the entry of a line; None for a line that is none, such as one that was cut off."""
    try:
        return from_line(line)
    except SchemaError:
        return None


def hash_of(line: bytes) -> str:
    """Return the SHA-256 of a line, without its line break, as hexadecimal digits."""
    return hashlib.sha256(line).hexdigest()


def changes(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Describe what differs between two JSON values, such as "threshold 10 -> 12"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from changes(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name} {_shown(old)} -> {_shown(new)}".strip()


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
