"""A thread that looks at files again and again while a stream runs."""

from __future__ import annotations

import threading
from collections.abc import Callable

POLL_S = 0.2
JOIN_S = 5.0  # seconds that the end waits, since a network drive may hang


class Polling:
    """Calls a function every POLL_S seconds in a thread, within the block."""

    def __init__(self, look: Callable[[], None], name: str) -> None:
        self._look = look
        self._closed = threading.Event()
        # A daemon, so that a drive that hangs cannot keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Polling:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        while not self._closed.wait(POLL_S):
            self._look()
