"""Signs of life of a stream: to a supervisor, such as systemd, and as the time of a file.

A sign is only given while every part of the stream does its work: `beat` is called by the loop that
judges, which no sign leaves while the engine hangs, and it asks the cameras and the outputs whether
something has waited for too long in them. No thread gives signs by itself.
"""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from flawline import FlawlineError
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.console import warn
from flawline.runtime.service_manager import ALIVE, READY, STOPPING, ServiceManager, status
from flawline.runtime.station.tally import Tally

# Seconds without progress after which a part hangs, unless the supervisor has a time of its own.
HANGS_S = 60.0
LONGEST_PERIOD_S = 5.0
# Signs within the time of the supervisor, so that one may be late.
SIGNS_PER_LIMIT = 4

# Returns None while nothing waits in a part of the stream. Otherwise it returns what is equal for
# as long as the same thing waits.
Pending = Callable[[], object | None]


class LifeSigns:
    """Says that a stream lives, while it does. Use it as a context manager, or close it.

    Without a `manager` and a `file` it does nothing. The file is written when the stream has begun,
    and at each sign, so that the age of the file tells whether the stream lives. `clock` returns
    seconds that never go backwards.
    """

    def __init__(
        self,
        manager: ServiceManager | None = None,
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manager = manager
        self._file = file
        self._clock = clock
        self._limit = HANGS_S
        if manager is not None and manager.watchdog_s is not None:
            self._limit = manager.watchdog_s
        # Seconds between two signs; None if there are none.
        self.period: float | None = None
        if manager is not None or file is not None:
            self.period = min(LONGEST_PERIOD_S, self._limit / SIGNS_PER_LIMIT)
        self._parts: dict[str, Pending] = {}
        self._tally = Tally()
        # What waits in each part, and since when.
        self._waiting: dict[str, tuple[object, float]] = {}
        self._next = 0.0
        self._hanging: str | None = None

    def status(self, text: str) -> None:
        """Show a text as the status of the service."""
        if self._manager is not None:
            self._manager.send(status(text))

    def begin(self, cameras: Mapping[str, Pending], outputs: Pending, tally: Tally) -> None:
        """Say that the stream has begun. The cameras, by name, and the outputs are asked then."""
        self._parts = {f"camera {name}": pending for name, pending in cameras.items()}
        self._parts["the outputs"] = outputs
        self._tally = tally
        if self._manager is not None:
            self._manager.send(READY, status("runs; no frame yet"))
        self._next = self._clock()
        self.beat()

    def beat(self) -> None:
        """Give a sign if it is time for one. The loop of the stream calls it, also while it waits.

        A part that hangs is named in the log, and no sign is given until it works again.
        """
        if self.period is None or self._clock() < self._next:
            return
        now = self._clock()
        self._next = now + self.period
        hanging = self._find_hanging(now)
        if hanging is not None:
            if hanging != self._hanging:
                warn(
                    f"warning: {hanging} has made no progress for {self._limit:g} s; no signs of "
                    f"life are given, so that the supervisor starts the stream again"
                )
            self._hanging = hanging
            self.status(f"{hanging} hangs")
            return
        self._hanging = None
        if self._manager is not None:
            self._manager.send(ALIVE, status(self._describe()))
        if self._file is not None:
            # A failure leaves the file old, which is for the supervisor to judge.
            with suppress(OSError):
                self._file.touch()

    def due(self, until: float | None) -> float | None:
        """Return the earlier one of a time of the clock and that of the next sign."""
        if self.period is None:
            return until
        return self._next if until is None else min(until, self._next)

    def stopping(self) -> None:
        """Say that the stream ends. A signal handler may call it."""
        if self._manager is not None:
            self._manager.send(STOPPING, status("ends"))

    def close(self) -> None:
        """Remove the file. May be called again."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def __enter__(self) -> LifeSigns:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find_hanging(self, now: float) -> str | None:
        for name, pending in self._parts.items():
            mark = pending()
            known, since = self._waiting.get(name, (None, now))
            if mark is None or mark != known:
                since = now
            self._waiting[name] = (mark, since)
            if now - since >= self._limit:
                return name
        return None

    def _describe(self) -> str:
        tally = self._tally
        counts = f"{tally.frames} parts, {tally.anomalous} anomalous, {tally.unjudged} unjudged"
        return f"runs; {counts}"


def open_life_signs(file: Path | None) -> LifeSigns:
    """Return the signs of life for the supervisor of this process, and for a file if one is given.

    The variables of the supervisor are removed from the environment, and the file of an earlier
    stream is removed. Raises FlawlineError if the file cannot be written.
    """
    manager = ServiceManager.of_environment(os.environ)
    if manager is not None and manager.watchdog_s is not None:
        # The supervisor ends what gives no signs by SIGABRT: the log then has what each thread did.
        faulthandler.enable()
    if file is not None:
        try:
            file.touch()
            file.unlink()
        except OSError as error:
            raise FlawlineError(
                f"{file} cannot be written ({reason_of(error)}); {remedy_of(error, '--alive')}"
            ) from error
    return LifeSigns(manager, file)
