"""User names and passwords of cameras, from a file or an address. They are never printed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from flawline.cameras import CameraError
from flawline.os_errors import reason_of, remedy_of

FORMAT = "write the lines user=NAME and password=PASSWORD"
OTHERS = 0o077


@dataclass(frozen=True)
class Credentials:
    """A user name and a password, neither of which is in the text of this object."""

    user: str = field(repr=False)
    password: str = field(repr=False)


def read_credentials(path: str) -> Credentials:
    """Read a file with the lines `user=NAME` and `password=PASSWORD`.

    What follows the equals sign counts as it is, with its spaces. Empty lines and those that start
    with a number sign are skipped. Raises CameraError, which quotes no line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise CameraError(
            f"credentials file {path}: cannot be read ({reason_of(error)}); {remedy_of(error)}"
        ) from error
    except UnicodeDecodeError:
        raise CameraError(f"credentials file {path}: is not UTF-8 text; {FORMAT}") from None
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, value = line.partition("=")
        name = name.strip()
        if not separator or name not in ("user", "password") or name in values:
            raise CameraError(f"credentials file {path}: line {number} is not valid; {FORMAT}")
        values[name] = value
    if len(values) < 2:
        raise CameraError(f"credentials file {path}: has not both lines; {FORMAT}")
    return Credentials(values["user"], values["password"])


def permission_warning(path: str) -> str | None:
    """Return a warning if users other than the owner may read or write a file."""
    mode = Path(path).stat().st_mode
    if not mode & OTHERS:
        return None
    return f"warning: other users may read the credentials file {path}; run chmod 600 on it"
