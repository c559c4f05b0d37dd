"""Paths with options, `PATH?NAME=VALUE&NAME=VALUE`, as cameras and outputs are described.

The first question mark starts the options. %3F stands for a question mark in the path, and %25 for
a percent sign. A number sign has no meaning of its own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, quote_from_bytes, unquote_to_bytes

from flawline.options import OptionError

# User name and password of an address: up to the last @, because they may not be percent-encoded as
# they should. Paths of files have no host, and start with a slash. The second alternative is an
# address without its scheme, or with a single slash.
USERINFO = re.compile(r"(?<=://)[^/].*@|^[^/]*:(?!//).*@", re.DOTALL)
# Parts of the paths and options of cameras that hold a secret: user=admin&pwd=x, /password=x_id=1.
SECRET = re.compile(
    r"((?:username|user|usr|login|password|passwd|pass|pwd|secret|token)=)"
    r"[^&/?;]*?(?=_[a-z]+=|[&/?;]|$)",
    re.IGNORECASE,
)


def without_secrets(uri: str) -> str:
    """Return a URI for messages: without user name and password, and with *** for other secrets.

    The path of a file is returned as it is.
    """
    if "://" not in uri:
        return USERINFO.sub("", uri)
    return mask_secrets(USERINFO.sub("", uri))


def mask_secrets(address: str) -> str:
    """Replace the values of user names, passwords and tokens in an address by ***."""
    return SECRET.sub(r"\1***", address)


def split_address(text: str) -> tuple[str, dict[str, str]]:
    """Split a network address into its part for the server, as it was written, and its options.

    %3F in its path stands for a question mark that belongs to the server. Raises OptionError for an
    option that is given twice, and for an @ in the options.
    """
    address, _, query = text.partition("?")
    if "@" in query:
        # The message of an unknown option would quote what is after the question mark.
        raise OptionError(
            "there is an @ after the question mark; write %3F for a question mark in user name, "
            "password or path, and %40 for an @ in an option"
        )
    # In user name and password, it stays as the rest of their percent-encoding.
    host, slash, path = address.partition("/")
    path = re.sub("%3f", "?", path, flags=re.IGNORECASE)
    return host + slash + path, parse_query(query)


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
