"""Files with headers for requests to a server, such as its token, which are never printed."""

from __future__ import annotations

import re
from pathlib import Path

from flawline import FlawlineError
from flawline.cameras.credentials import permission_warning
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.console import warn

HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\t]*)")
FORMAT = "write one NAME: VALUE a line, in ASCII, as Authorization: Bearer TOKEN"


class HeaderFileError(FlawlineError):
    """The file cannot be read, or a line is no header."""


def read_headers(path: str | None) -> dict[str, str]:
    """Read a file with one header a line, and warn if other users may read it.

    Empty lines and those that start with a number sign are skipped. None gives no headers. Raises
    HeaderFileError, which quotes no line.
    """
    if path is None:
        return {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        warning = permission_warning(path)
    except OSError as error:
        raise HeaderFileError(
            f"headers file {path} cannot be read ({reason_of(error)}); {remedy_of(error)}"
        ) from error
    except UnicodeDecodeError:
        raise HeaderFileError(f"headers file {path} is not UTF-8 text; {FORMAT}") from None
    if warning is not None:
        warn(warning)
    headers: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = HEADER.fullmatch(line)
        if match is None:
            raise HeaderFileError(f"headers file {path}: line {number} is not valid; {FORMAT}")
        headers[match[1]] = match[2]
    return headers
