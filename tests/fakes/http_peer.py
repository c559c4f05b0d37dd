"""An HTTP server that records what is posted to it, and that dies and comes back on request."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[int], int]  # number of the request, from 0 -> status


class HttpPeer:
    """Listens on 127.0.0.1; `answer` gives the status of each request."""

    def __init__(
        self, answer: Answer = lambda number: 200, context: ssl.SSLContext | None = None
    ) -> None:
        self.answer = answer
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.accepted: dict[str, Any] = {}
        self.connections = 0
        self.changed = threading.Condition()
        self._context = context
        self._sockets: list[socket.socket] = []
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    def start(self) -> None:
        """Listen, on the same port as before."""
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                peer.connections += 1
                peer._sockets.append(self.request)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = peer._note(dict(self.headers), self.path, body)
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """Print nothing: the connections of a server that dies break."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        if self._context is not None:
            listening = self._server.socket
            self._server.socket = self._context.wrap_socket(listening, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _note(self, headers: dict[str, str], path: str, body: bytes) -> int:
        with self.changed:
            status = self.answer(len(self.headers))
            self.headers.append(headers)
            self.paths.append(path)
            if 200 <= status < 300:
                self.accepted[headers["Idempotency-Key"]] = json.loads(body)
            self.changed.notify_all()
        return status

    def wait_for(self, count: int) -> None:
        """Wait until so many different messages were accepted."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.accepted) >= count, 20)

    def cut(self) -> None:
        """Close all connections, and continue to listen."""
        for connection in self._sockets:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self._sockets.clear()

    def kill(self) -> None:
        """Close all connections, and refuse further ones."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self.cut()
