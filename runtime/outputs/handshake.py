"""What servers that a PLC controls share: it triggers parts, and acknowledges their results."""

from __future__ import annotations

import os
import socket
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flawline.cameras import Camera, CameraError
from flawline.cameras.triggered import TriggeredCamera
from flawline.options import option
from flawline.os_errors import reason_of
from flawline.runtime.background import BackgroundWorker
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import printable, warn
from flawline.runtime.outputs import Judgement, OutputError
from flawline.runtime.outputs.delivery import Delivery, DeliveryOptions
from flawline.runtime.station.part_feed import send_part, wait_for_cameras

MOST_TRIGGERS = 100  # that may wait to be sent to the camera


@dataclass(frozen=True)
class HandshakeOptions(DeliveryOptions):
    """Options of every server that a PLC controls."""

    acknowledge: bool = option(
        True, "show each result until it is acknowledged; 0: the next one replaces it"
    )


@dataclass(frozen=True)
class Result:
    """The verdict on a part, as a PLC reads it.

    `number` counts the results from 1. `part` is the name of the part, empty if it has none.
    `score` is NaN if the part could not be judged, and `reason` says why. `started` is when the
    image was captured, in seconds since 1970; `judging` is the time from capture to verdict in
    seconds, or that of the detector if the camera does not state it.
    """

    number: int
    part: str
    verdict: str
    rejected: bool
    score: float
    threshold: float
    reason: str
    camera: str
    started: float
    judging: float


class HandshakeServer(Delivery):
    """Base class of servers that a PLC controls.

    A subclass opens its server in `_start`, calls `_trigger` and `_acknowledge` for what the PLC
    sends, and shows `_shown` and `_state`. A trigger that was taken gives exactly one result, in
    the order of the triggers, since a triggered camera gives a frame for each pulse. A result is
    shown until it is acknowledged, while further ones wait in the queue. The stream never waits
    for the PLC: a result that does not fit is dropped and counted.
    """

    uses_regions = False
    Options: ClassVar[type[HandshakeOptions]] = HandshakeOptions

    def __init__(self, name: str, options: HandshakeOptions, bundle: Bundle) -> None:
        super().__init__(name, options, bundle)
        # A PLC that is switched off must not hold up a folder either.
        self._answers = False
        self._acknowledges = options.acknowledge
        self._results: deque[Result] = deque()
        self._number = 0
        self._cameras: list[TriggeredCamera] = []
        self._is_open = False
        self._closed = False
        # Triggers that were taken and have no result yet.
        self._pending = 0
        self._pulses = BackgroundWorker(MOST_TRIGGERS)

    @abstractmethod
    def _start(self) -> None:
        """Open the server. Raises OutputError."""

    @abstractmethod
    def _stop(self) -> None:
        """Close the server, within a second."""

    # What the stream calls.

    def attach(self, camera: Camera) -> None:
        if not isinstance(camera, TriggeredCamera) or not camera.triggered:
            self._on_open()
            return
        with self._changed:
            self._cameras.append(camera)
            cameras = list(self._cameras)

        def wait() -> None:
            # Before that, a trigger would be for a part that the camera cannot see.
            usable = wait_for_cameras(cameras)
            with self._changed:
                self._is_open = len(usable) == len(cameras)
            if self._is_open:
                self._on_open()
            elif not self._closed:
                self._on_failure()

        self._pulses.submit(wait, 1, wait=False)

    def _message(self, judgement: Judgement) -> Result:
        frame = judgement.frame
        verdict = judgement.verdict
        judging = judgement.age
        if judging is None:
            judging = 1e-3 * sum(verdict.milliseconds.values())
        self._number += 1
        return Result(
            number=self._number,
            part=printable(frame.part or ""),
            verdict=verdict.name,
            rejected=verdict.anomalous,
            score=verdict.score,
            threshold=verdict.threshold,
            reason=printable(verdict.reason or ""),
            camera=printable(judgement.camera or ""),
            started=frame.captured_at,
            judging=judging,
        )

    def _summary(self, summary: Mapping[str, Any]) -> None:
        """Send none: a PLC has no use for it."""

    def _take(self, message: Result, *, is_summary: bool = False) -> bool:
        with self._changed:
            self._pending = max(0, self._pending - 1)
            if self._acknowledges and len(self._results) >= self._limits.queue:
                return False
            if not self._acknowledges:
                self._delivered += 1
                self._results.clear()
            self._results.append(message)
        self._on_result(message)
        return True

    def _on_result(self, result: Result) -> None:
        """Tell the server that there is a further result. Called by the stream; does not wait."""

    def _on_open(self) -> None:
        """Tell the server that cameras are open. Called by any thread; does not wait."""

    def _on_failure(self) -> None:
        """Tell the server that a camera is lost. Called by any thread; does not wait."""

    def totals(self) -> Mapping[str, int]:
        # A trigger that was taken now would get no result.
        with self._changed:
            self._is_open = False
        return super().totals()

    def _discard(self) -> None:
        if self._closed:
            return
        self._closed = True
        with self._changed:
            self._is_open = False
        self._pulses.discard()
        self._pulses.close(timeout=1.0)
        self._stop()

    # What the server calls, in any thread.

    @property
    def _can_trigger(self) -> bool:
        """Whether a trigger would be taken: there is a camera with a trigger, and it is open."""
        return self._is_open and not self._closed

    @property
    def _is_busy(self) -> bool:
        """Whether a part that was triggered has no result yet."""
        return self._pending > 0

    @property
    def _shown(self) -> Result | None:
        """The oldest result that is not acknowledged, or the newest one without handshake."""
        with self._changed:
            return self._results[0] if self._results else None

    @property
    def _lost(self) -> int:
        """How many results were dropped because too many were waiting."""
        return self._dropped

    def _trigger(self, part: str | None) -> bool:
        """Take the trigger for a part; return False if it is refused, so that no result comes."""
        with self._changed:
            if not self._can_trigger:
                return False
            cameras = list(self._cameras)
            self._pending += 1
        if self._pulses.submit(lambda: self._send(cameras, part), 1, wait=False):
            return True
        with self._changed:
            self._pending -= 1
        return False

    def _send(self, cameras: list[TriggeredCamera], part: str | None) -> None:
        try:
            send_part(cameras, part)
        except CameraError as error:
            warn(f"{self._name}: {error}")
            self._on_failure()

    def _acknowledge(self, result: Result | None = None) -> bool:
        """Remove a result, by default the one that is shown; return False if it is not there."""
        with self._changed:
            if not self._results or not self._acknowledges:
                return False
            result = result or self._results[0]
            if result not in self._results:
                return False
            self._results.remove(result)
            self._delivered += 1
            self._changed.notify_all()
        return True


def require_free(name: str, host: str, port: int) -> None:
    """Raise OutputError, which says why, if a server cannot listen on an address.

    `name` is that of the output. Libraries of servers do not say why they cannot listen.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except (OSError, UnicodeError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            reason = reason_of(error)
            if error.errno is not None and error.errno > 0:
                # Python adds the address.
                reason = os.strerror(error.errno)
        raise OutputError(
            f"{name}: cannot listen ({reason}); choose an address of this machine and a free port; "
            f"ports below 1024 need the capability CAP_NET_BIND_SERVICE"
        ) from error


class ServerThread:
    """A thread with an asyncio loop, in which a server runs.

    `name` is that of the thread. It is a daemon, so that it cannot keep the process from ending.
    """

    def __init__(self, name: str) -> None:
        import asyncio

        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.loop.run_forever()
        self.loop.run_until_complete(_end_tasks())
        self.loop.close()

    def call(self, coroutine: Any, timeout: float) -> Any:
        """Run a coroutine in the loop and return its result.

        Raises what it raises, and TimeoutError after `timeout` seconds.
        """
        import asyncio
        import concurrent.futures

        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError as error:
            future.cancel()
            raise TimeoutError(f"no answer within {timeout:g} s") from error

    def close(self) -> None:
        """End the loop and the thread. The server must be closed before."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(1.0)


async def _end_tasks() -> None:
    """Cancel all other tasks of the loop, and wait for them."""
    import asyncio

    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
