"""Paths with options, `PATH?NAME=VALUE&NAME=VALUE`, as cameras and outputs are described.

The first question mark starts the options. %3F stands for a question mark in the path, and %25 for
a percent sign. A number sign has no meaning of its own.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qsl, quote_from_bytes, unquote_to_bytes

from flawline.options import OptionError


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """Split a description into its path, decoded, and its options.

    Raises OptionError for an option that is given twice.
    """
    path, _, query = text.partition("?")
    decoded = os.fsdecode(unquote_to_bytes(os.fsencode(path)))
    return decoded, parse_query(query)


def folder_of(text: str) -> Path | None:
    """Return the folder that a path or a URI with options describes; None if it is no folder."""
    if text and Path(text).is_dir():
        return Path(text)
    _, separator, rest = text.partition("://")
    path = split_options(rest if separator else text)[0]
    # The empty path of a URI such as synthetic:// is not the current folder.
    if path and Path(path).is_dir():
        return Path(path)
    return None


def parse_query(query: str) -> dict[str, str]:
    """Parse `NAME=VALUE&NAME=VALUE`. Raises OptionError for an option that is given twice."""
    values: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in values:
            raise OptionError(f"option {name!r} is given twice; leave one of them out")
        values[name] = value
    return values


def quote_path(path: str | os.PathLike[str]) -> str:
    """Return a path as `split_options` decodes it."""
    return quote_from_bytes(os.fsencode(path))
