"""The address of a model: grpc://HOST:PORT/MODEL?NAME=VALUE&NAME=VALUE."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from flawline.options import OptionError, option, parse_options
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.engines import EngineError
from flawline.runtime.header_file import HeaderFileError, read_headers
from flawline.uris import parse_query, without_secrets

USAGE = "grpc://HOST:PORT/MODEL"
TARGET = re.compile(
    r"grpc://(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s/:@\[\]?]+):(?P<port>\d{1,5})/(?P<model>[^/]+)"
)
HIGHEST_PORT = 65_535
LONGEST_TIMEOUT_S = 60
MOST_RETRIES = 10


@dataclass(frozen=True)
class ServerOptions:
    """Raises ValueError for a value that is out of range, and for `ca` without TLS."""

    version: str | None = option(None, "version of the model; else the server chooses it")
    timeout: float = option(2.0, "seconds without an answer after which an image is given up")
    retries: int = option(2, "how often an image is sent again if the connection is lost")
    tls: bool = option(False, "connect with TLS")
    ca: str | None = option(
        None, "file with the certificates that the server's is checked against; else the system's"
    )
    headers: str | None = option(
        None, "file with a header a line, such as Authorization: Bearer TOKEN"
    )

    def __post_init__(self) -> None:
        if not 0 < self.timeout <= LONGEST_TIMEOUT_S:
            raise ValueError(f"timeout must be above 0 and at most {LONGEST_TIMEOUT_S}")
        if not 0 <= self.retries <= MOST_RETRIES:
            raise ValueError(f"retries must be from 0 to {MOST_RETRIES}")
        if self.ca is not None and not self.tls:
            raise ValueError("ca needs tls=1")


@dataclass(frozen=True)
class Address:
    """Where a model is served, and how it is asked.

    `target` is HOST:PORT, `headers` go with each request, and `certificates` are those that the
    server's is checked against, in the PEM format; None stands for the system's.
    """

    target: str
    model: str
    options: ServerOptions
    headers: tuple[tuple[str, str], ...] = ()
    certificates: bytes | None = None

    def __str__(self) -> str:
        """Return the address for messages, without options."""
        return f"grpc://{self.target}/{self.model}"


def parse_address(text: str) -> Address:
    """Read the address and the files that it names. Raises EngineError.

    %2F and %3F stand for a slash and a question mark in the name of the model.
    """
    path, _, query = text.partition("?")
    shown = without_secrets(path)
    match = TARGET.fullmatch(path)
    if match is None or not 0 < int(match["port"]) <= HIGHEST_PORT:
        raise EngineError(f"--server {shown}: is not an address {USAGE}; write it so")
    try:
        options = parse_options(ServerOptions, parse_query(query))
        headers = read_headers(options.headers)
    except (OptionError, HeaderFileError) as error:
        raise EngineError(f"--server {shown}: {error}") from error
    # gRPC has no upper case in names of headers.
    pairs = tuple((name.lower(), value) for name, value in headers.items())
    certificates = _read_certificates(shown, options.ca)
    target = f"{match['host']}:{match['port']}"
    return Address(target, unquote(match["model"]), options, pairs, certificates)


def _read_certificates(shown: str, path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise EngineError(
            f"--server {shown}: certificates {path} cannot be read ({reason_of(error)}); "
            f"{remedy_of(error)}"
        ) from error
