"""Each result as the body of an HTTP POST."""

from __future__ import annotations

import http.client
import itertools
import re
import secrets
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from flawline import __version__
from flawline.cameras.restarts import backoff
from flawline.options import option
from flawline.os_errors import reason_of
from flawline.runtime.background import BackgroundWorker
from flawline.runtime.bundle import Bundle
from flawline.runtime.header_file import HeaderFileError, read_headers
from flawline.runtime.outputs import OutputError
from flawline.runtime.outputs.delivery import Delivery, DeliveryOptions

LONGEST_PAUSE_S = 10.0  # between two attempts
LONGEST_TIMEOUT_S = 60
CLOSE_S = 0.2  # for the thread to end
# Answers that may change with the same message: 408 is a time-out, 429 too many requests.
TEMPORARY = (408, 425, 429, *range(500, 600))
MOST_ATTEMPTS = 8  # at a message that the server answers with one of them
MOST_READ = 65_536  # bytes of an answer


@dataclass(frozen=True)
class WebhookOptions(DeliveryOptions):
    """Raises ValueError for a time-out that is out of range."""

    headers: str | None = option(
        None, "file with a header a line, such as Authorization: Bearer TOKEN"
    )
    ca: str | None = option(
        None, "file with the certificates that the server's is checked against; else the system's"
    )
    timeout: float = option(5.0, "seconds without an answer after which a message is sent again")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.timeout <= LONGEST_TIMEOUT_S:
            raise ValueError(f"timeout must be above 0 and at most {LONGEST_TIMEOUT_S}")


class Webhook(Delivery):
    """Sends the JSON line of each judgement, and the summary, to an HTTP or HTTPS server.

    A thread sends one message after the other over one connection. A message is delivered when the
    server answers with a status from 200 to 299. It is sent again, after pauses of up to 10 s,
    while the server does not answer, and up to 8 times in all if the answer is temporary (408, 425,
    429, 500 to 599); after another answer it counts as not delivered. A message may arrive
    twice, both times with the same header Idempotency-Key.
    """

    usage: ClassVar[str] = "webhook:https://HOST/PATH[?headers=FILE]"
    Options: ClassVar[type[WebhookOptions]] = WebhookOptions

    def __init__(self, target: str, options: WebhookOptions, bundle: Bundle) -> None:
        host, self._path, is_secure = _parse(target)
        super().__init__(f"output webhook: {host}", options, bundle)
        self._headers = {
            "Content-Type": "application/json",
            "User-Agent": f"flawline/{__version__}",
            **_read_headers(options.headers),
        }
        self._connection = http.client.HTTPConnection(host, timeout=options.timeout)
        if is_secure:
            self._connection = http.client.HTTPSConnection(
                host, timeout=options.timeout, context=_tls(options.ca)
            )
        self._worker = BackgroundWorker(options.queue)
        self._stopped = threading.Event()
        self._run = secrets.token_hex(8)
        self._numbers = itertools.count()

    @classmethod
    def example(cls, folder: Path) -> str:
        """Return the address of a server that does not run, which an output must survive."""
        return "http://127.0.0.1:9/?end_s=0"

    def _take(self, message: bytes, *, is_summary: bool = False) -> bool:
        key = f"{self._run}-{next(self._numbers)}"
        return self._worker.submit(lambda: self._send(message, key), 1, wait=False)

    def _discard(self) -> None:
        self._stopped.set()
        self._worker.discard()
        # A message that waits for an answer, which may never come, is not waited for.
        self._worker.close(timeout=CLOSE_S)
        if self._worker.drain(timeout=0):
            self._connection.close()

    def _send(self, message: bytes, key: str) -> None:
        """Send a message until it is delivered or refused, or the output closed. Of the thread."""
        failures = 0
        answers = 0
        while not self._stopped.is_set():
            try:
                status = self._post(message, key)
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                self._note_failure(f"cannot be reached ({_reason(error)})")
            else:
                if 200 <= status < 300:
                    self._note_delivered()
                    return
                answers += 1
                if status not in TEMPORARY or answers == MOST_ATTEMPTS:
                    self._note_answer()
                    self._note_refused(f"status {status}")
                    return
                self._note_failure(f"answered with status {status}")
            self._stopped.wait(backoff(failures, LONGEST_PAUSE_S))
            failures += 1
        self._connection.close()

    def _post(self, message: bytes, key: str) -> int:
        """Send a message once and return the status of the answer.

        Raises OSError or HTTPException. A server may have closed a connection that was not used
        for a while: that is no failure, so that it is opened again at once.
        """
        headers = {**self._headers, "Idempotency-Key": f'"{key}"'}
        was_open = self._connection.sock is not None
        try:
            self._connection.request("POST", self._path, message, headers)
            response = self._connection.getresponse()
        except (ConnectionError, http.client.BadStatusLine):
            self._connection.close()
            if not was_open:
                raise
            self._connection.request("POST", self._path, message, headers)
            response = self._connection.getresponse()
        response.read(MOST_READ)
        if not response.isclosed():
            # The rest of a long answer would be taken for the next one.
            self._connection.close()
        return response.status


def _parse(target: str) -> tuple[str, str, bool]:
    """Return host with port, path with query, and whether it is HTTPS. Raises OutputError."""
    usage = f"write {Webhook.usage}"
    try:
        address = urlsplit(target)
        port = address.port
    except ValueError:
        raise OutputError(f"output webhook: the address is not valid; {usage}") from None
    if address.scheme not in ("http", "https") or not address.hostname:
        raise OutputError(f"output webhook: the address has no http:// or https://; {usage}")
    if "@" in address.netloc:
        raise OutputError(
            "output webhook: the address has a user name, which other programs may see; write a "
            "line Authorization: Basic ... to a file, and give it with ?headers=FILE"
        )
    host = address.hostname
    if ":" in host:
        host = f"[{host}]"
    if port is not None:
        host = f"{host}:{port}"
    path = address.path or "/"
    if address.query:
        path = f"{path}?{address.query}"
    if not (host + path).isascii() or re.search(r"[\x00-\x20\x7f]", host + path):
        raise OutputError(
            f"output webhook: the address has characters that must be percent-encoded; {usage}"
        )
    return host, path, address.scheme == "https"


def _read_headers(path: str | None) -> dict[str, str]:
    """Read a file with one header a line. Raises OutputError, which quotes no line."""
    try:
        return read_headers(path)
    except HeaderFileError as error:
        raise OutputError(f"output webhook: {error}") from error


def _tls(ca: str | None) -> ssl.SSLContext:
    """Return the settings of HTTPS, with the certificates of a file, or else of the system."""
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise OutputError(
            f"output webhook: certificates {ca} cannot be read ({reason_of(error)}); give a file "
            f"in the PEM format"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return reason_of(error)
    return str(error) or type(error).__name__
