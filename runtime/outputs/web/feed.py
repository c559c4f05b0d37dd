"""The events that a browser gets while it watches, as of Server-Sent Events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import msgspec

from flawline.runtime.outputs.web.board import Board
from flawline.runtime.outputs.web.lane import Point
from flawline.runtime.outputs.web.state import state_of

PERIOD_S = 0.2  # seconds between two looks at the board
# A browser that got nothing for a few of these says that the station is gone.
PULSE_S = 1.0
RETRY_MS = 1000  # after which a browser connects again
# Points of a lane in the first event. The page asks for more where it needs them.
FIRST_POINTS = 300


class Feed:
    """Gives each browser the state of a board, and the points that it has not got yet.

    Nothing waits for a browser that is slow: it gets what is new when it is ready for it. The state
    is encoded once for all browsers. Called by the loop of the server.
    """

    def __init__(self, board: Board, is_closed: Callable[[], bool]) -> None:
        self._board = board
        self._is_closed = is_closed
        # The last state that was encoded, for which version of the board and when.
        self._encoded = b""
        self._encoded_for = (-1, 0.0)

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events for one browser until the server is closed."""
        yield f"retry: {RETRY_MS}\n\n".encode()
        version = -1
        sent_at = 0.0
        sent: dict[str, int] = {}
        while True:
            now = time.monotonic()
            # Read before what it is the version of.
            newest = self._board.version
            if newest != version or now - sent_at >= PULSE_S:
                version = newest
                sent_at = now
                yield _event("points", msgspec.json.encode(self._points(sent)))
                yield _event("state", self._state(newest, now))
            if self._is_closed():
                yield _event("end", b"{}")
                return
            await asyncio.sleep(PERIOD_S)

    def _points(self, sent: dict[str, int]) -> dict[str, list[Point]]:
        """Return the points of each lane since those that were `sent`, which is brought forward."""
        points: dict[str, list[Point]] = {}
        for name, lane in self._board.lanes.items():
            fresh = lane.points(sent.get(name, 0))
            if name not in sent:
                fresh = fresh[-FIRST_POINTS:]
            if fresh:
                sent[name] = fresh[-1][0]
            points[name] = fresh
        return points

    def _state(self, version: int, now: float) -> bytes:
        encoded_version, at = self._encoded_for
        # Ages in it grow.
        if version != encoded_version or now - at >= PERIOD_S:
            self._encoded = msgspec.json.encode(state_of(self._board))
            self._encoded_for = (version, now)
        return self._encoded


def _event(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
