"""Members of the project by name: methods, backbones, engines, cameras and outputs.

Each kind has a plain dictionary, name -> "module:Class", so that listing a member imports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

from flawline import FlawlineError
from flawline.suggestions import did_you_mean


def resolve(entries: Mapping[str, str], name: str, kind: str, error: type[FlawlineError]) -> Any:
    """Import the member `name` of a dictionary, name -> "module:Class", and return it.

    Raises `error` for an unknown name, with the known ones; `kind`, for example "engine", begins
    the message.
    """
    if name not in entries:
        suggestion = did_you_mean(name, entries)
        raise error(f"{kind} {name!r} is unknown{suggestion}; known: {', '.join(entries)}")
    return resolve_name(entries[name])
