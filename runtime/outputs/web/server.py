"""The HTTP server of the page, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from typing import TYPE_CHECKING

from flawline.runtime.outputs import OutputError
from flawline.runtime.outputs.handshake import require_free
from flawline.runtime.outputs.web.guard import App

if TYPE_CHECKING:
    from uvicorn import Server

MOST_CONNECTIONS = 100
LARGEST_HEADERS = 16_384  # bytes
KEEP_ALIVE_S = 15
# Milliseconds after which a connection whose peer confirms nothing is given up.
SILENT_PEER_MS = 20_000
STOP_S = 3.0
BACKLOG = 64


class PageServer:
    """Serves an application on an address from `start` until `close`.

    `name` is that of the output in messages. Raises OutputError if the address cannot be listened
    on.
    """

    def __init__(self, name: str, host: str, port: int) -> None:
        require_free(name, host, port)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise OutputError(f"{name}: cannot listen ({error}); choose a free port") from error
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Connections inherit it: a tablet that left the network is not sent to for ever.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_PEER_MS)
        self.port: int = self._socket.getsockname()[1]
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, app: App) -> None:
        """Begin to answer, in a thread."""
        from uvicorn import Config, Server

        # What is wrong with a connection is no message of the stream.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
        config = Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=LARGEST_HEADERS,
        )
        server = Server(config)
        self._server = server

        def run() -> None:
            asyncio.run(server.serve(sockets=[self._socket]))

        # A daemon, so that a browser cannot keep the process from ending.
        self._thread = threading.Thread(target=run, name="page", daemon=True)
        self._thread.start()

    @property
    def is_closing(self) -> bool:
        """Whether `close` was called."""
        return self._server is not None and self._server.should_exit

    def close(self) -> None:
        """End all connections, within STOP_S seconds. May be called again."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(STOP_S)
        self._socket.close()
