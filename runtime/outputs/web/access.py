"""Who may see the page: hosts, the token, and the session of a browser that gave it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

from flawline import FlawlineError
from flawline.cameras.credentials import permission_warning
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.console import warn

SHORTEST_TOKEN = 16
LONGEST_TOKEN = 512
SESSION_S = 7 * 86_400  # seconds after which a browser must give the token again
MAKE_TOKEN = "make one with: (umask 077 && openssl rand -hex 24 > FILE)"


class AccessError(FlawlineError):
    """The file of the token cannot be used."""


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(path: str) -> str:
    """Read a token, the only line of a file, and warn if other users may read it.

    Raises AccessError, which quotes nothing of the file.
    """
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
        warning = permission_warning(path)
    except OSError as error:
        raise AccessError(
            f"token file {path} cannot be read ({reason_of(error)}); {remedy_of(error)}"
        ) from error
    except UnicodeDecodeError:
        raise AccessError(f"token file {path} is not ASCII text; {MAKE_TOKEN}") from None
    tokens = [line.strip() for line in lines if line.strip()]
    if len(tokens) != 1 or not tokens[0].isprintable() or " " in tokens[0]:
        raise AccessError(f"token file {path} does not hold one line with a token; {MAKE_TOKEN}")
    (token,) = tokens
    if not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN:
        raise AccessError(
            f"token file {path}: the token has {len(token)} characters, and needs {SHORTEST_TOKEN} "
            f"to {LONGEST_TOKEN}; {MAKE_TOKEN}"
        )
    if warning is not None:
        warn(warning)
    return token


@dataclass(frozen=True)
class Access:
    """What a request must show.

    Without a `token`, every request of an allowed host is answered. `names` are host names in
    addition to IP addresses, localhost and the name of this machine. `port` is in the name of the
    cookie, because browsers send the cookies of all ports of a host.
    """

    token: str | None = field(repr=False)
    port: int
    names: frozenset[str] = frozenset()

    @property
    def cookie(self) -> str:
        """The name of the cookie of a session."""
        return f"flawline_{self.port}"

    def allows_host(self, header: str) -> bool:
        """Tell whether a request was sent to this machine by a name that is its own.

        A page of another site may let its own name lead here (DNS rebinding), and its scripts
        could then read this one. The Host header has the other site's name then, and never an IP
        address.
        """
        host = host_of(header)
        if host is None:
            return False
        try:
            ipaddress.ip_address(host)
            return True
        except ValueError:
            return host in self._own_names

    @property
    def _own_names(self) -> frozenset[str]:
        name = socket.gethostname().lower()
        return self.names | {"localhost", name, f"{name}.local"}

    def is_same_origin(self, origin: str | None, host: str, site: str | None) -> bool:
        """Tell whether a request that changes something does not come from another site's page.

        `origin`, `host` and `site` are the headers Origin, Host and Sec-Fetch-Site. Programs send
        no Origin, and browsers always do.
        """
        if site is not None and site not in ("same-origin", "none"):
            return False
        if origin is None:
            return True
        try:
            return urlsplit(origin).netloc.lower() == host.lower() != ""
        except ValueError:
            return False

    def accepts_token(self, given: str) -> bool:
        """Compare a token in a time that says nothing about it."""
        expected = self.token or ""
        return hmac.compare_digest(given.encode(), expected.encode()) and bool(expected)

    def is_known(self, authorization: str | None, cookies: str | None) -> bool:
        """Tell whether the headers Authorization or Cookie of a request show the token."""
        if self.token is None:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() == "bearer" and self.accepts_token(given.strip()):
            return True
        try:
            morsel = SimpleCookie(cookies or "").get(self.cookie)
        except CookieError:
            return False
        return morsel is not None and self._accepts_session(morsel.value)

    def new_session(self) -> str:
        """Return the value of the cookie for a browser that gave the token.

        It is signed with the token: it stays valid when the stream is started again, and ends when
        the token is changed.
        """
        until = str(int(time.time()) + SESSION_S)
        return f"{until}.{self._signature(until)}"

    def _accepts_session(self, value: str) -> bool:
        until, _, signature = value.partition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(until).encode()):
            return False
        return time.time() < int(until)

    def _signature(self, until: str) -> str:
        key = (self.token or "").encode()
        return hmac.new(key, f"flawline session {until}".encode(), hashlib.sha256).hexdigest()


def host_of(header: str) -> str | None:
    """Return the host of a Host header, without port and brackets; None if it is none."""
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port
    except ValueError:
        return None
    if parts.hostname is None or parts.netloc != header or "@" in header:
        return None
    return parts.hostname.rstrip(".")


def host_names(text: str | None) -> frozenset[str]:
    """Return the host names of a list that is separated by commas."""
    names: Iterable[str] = (text or "").split(",")
    return frozenset(name.strip().lower().rstrip(".") for name in names if name.strip())
