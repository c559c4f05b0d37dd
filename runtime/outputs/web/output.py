"""The live page as an output of a stream."""

from __future__ import annotations

import importlib.util
import re
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from flawline.cameras import Camera
from flawline.cameras.events import CameraEvent
from flawline.extras import missing_package
from flawline.options import option
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import listening, log, printable
from flawline.runtime.outputs import Judgement, Output, OutputError, OutputOptions, StreamState
from flawline.runtime.outputs.web.access import (
    MAKE_TOKEN,
    Access,
    AccessError,
    host_names,
    is_loopback,
    read_token,
)
from flawline.runtime.outputs.web.board import Board
from flawline.runtime.outputs.web.server import PageServer
from flawline.runtime.outputs.web.teaching_desk import TeachingDesk

PORT = 8080
LARGEST_PORT = 65535
PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
TARGET = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s/:@\[\]]+)(:(?P<port>\d{1,5}))?")
LONGEST_TITLE = 60


@dataclass(frozen=True)
class WebOptions(OutputOptions):
    """Raises ValueError for a title that is too long."""

    token_file: str | None = option(
        None, "file with the token that opens the page; needed unless ADDRESS is this machine alone"
    )
    names: str | None = option(
        None, "further names of the machine in the addresses of browsers, separated by commas"
    )
    title: str | None = option(None, "what the page calls the station; default: the machine's name")

    def __post_init__(self) -> None:
        if self.title is not None and not 1 <= len(self.title) <= LONGEST_TITLE:
            raise ValueError(f"title must have 1 to {LONGEST_TITLE} characters")


class LivePage(Output):
    """Serves a page that shows the stream in a browser, with its health and its thresholds.

    `target` is the address to listen on. One that other machines can reach needs a token. The
    stream never waits for a browser; see the package.
    """

    required: ClassVar[bool] = False
    uses_regions = True
    usage: ClassVar[str] = "web:ADDRESS[:PORT][?token_file=FILE]"
    Options: ClassVar[type[WebOptions]] = WebOptions

    def __init__(self, target: str, options: WebOptions, bundle: Bundle) -> None:
        host, port = _parse(target)
        name = f"output web: {target}"
        token = _token(host, options)
        title = options.title or socket.gethostname()
        self._board = Board(bundle, printable(title))
        self._teaching = TeachingDesk(self._board)
        self._server = PageServer(name, host, port)
        self._resources = ExitStack()
        self._resources.callback(self._teaching.close)
        self._resources.callback(self._server.close)
        access = Access(token, self._server.port, host_names(options.names))
        # Imported here, since only this output needs its libraries.
        from flawline.runtime.outputs.web.app import create_app

        app = create_app(self._board, self._teaching, access, lambda: self._server.is_closing)
        self._server.start(app)
        self._resources.enter_context(listening(self._board.warn))
        log(f"the live page is at http://{_shown(host)}:{self._server.port}/")

    @classmethod
    def missing(cls) -> str | None:
        for package in PACKAGES:
            if importlib.util.find_spec(package) is None:
                return missing_package(package)
        return None

    @classmethod
    def example(cls, folder: Path) -> str:
        """Return the address of this machine, with any free port."""
        return "127.0.0.1:0"

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return self._server.port

    def write(self, judgement: Judgement) -> None:
        self._board.add(judgement)

    def follow(self, stream: Callable[[], StreamState]) -> None:
        self._board.follow(stream)

    def attach(self, camera: Camera) -> None:
        self._board.attach(camera)

    def note_event(self, camera: Camera, event: CameraEvent) -> None:
        self._board.note_event(camera, event)

    def change_bundle(self, bundle: Bundle) -> None:
        self._board.change_bundle(bundle)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._board.end()

    def close(self) -> None:
        self._resources.close()
        self._board.release()


def _parse(target: str) -> tuple[str, int]:
    """Return host and port of an address. Raises OutputError."""
    match = TARGET.fullmatch(target)
    if match is None or int(match["port"] or PORT) > LARGEST_PORT:
        raise OutputError(
            f"output web: {target!r} is not ADDRESS or ADDRESS:PORT; write {LivePage.usage}, such "
            f"as web:127.0.0.1:{PORT}"
        )
    return match["host"].strip("[]"), int(match["port"] or PORT)


def _shown(host: str) -> str:
    """Return a host as a browser takes it; for all addresses, it is the name of the machine."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _token(host: str, options: WebOptions) -> str | None:
    """Return the token; None where it is not needed. Raises OutputError."""
    if options.token_file is not None:
        try:
            return read_token(options.token_file)
        except AccessError as error:
            raise OutputError(f"output web: {error}") from error
    if is_loopback(host):
        return None
    raise OutputError(
        f"output web: {host} can be reached by other machines, so that the page needs a token: "
        f"write it to a file, and give it with --web-token-file FILE or ?token_file=FILE; "
        f"{MAKE_TOKEN}"
    )
