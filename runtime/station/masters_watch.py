"""Ends a stream whose last check of master parts failed or became too old."""

from __future__ import annotations

import threading
from collections.abc import Callable

from flawline.runtime.audit.log import AuditError
from flawline.runtime.console import warn
from flawline.runtime.detector import Detector
from flawline.runtime.masters.check import MastersError
from flawline.runtime.masters.record import signature_of
from flawline.runtime.masters.rule import MastersRule
from flawline.runtime.station.judge import Exchange

POLL_S = 1.0
# Without a new line in the log, only the clock makes a check too old.
LOOK_S = 10.0


class MastersWatch:
    """Looks at the audit log of what judges in a thread, and calls `end` if it must judge no more.

    Only judges with a rule that limits the age of the check are looked at. Use it as a context
    manager, which raises MastersError at the end of the block if it ended the stream.
    """

    def __init__(self, exchange: Exchange, end: Callable[[], None]) -> None:
        self._exchange = exchange
        self._end = end
        self._failure: str | None = None
        self._unread = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="masters", daemon=True)

    def __enter__(self) -> MastersWatch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        # Another error that ends the stream must reach the user.
        if self._failure is not None and kind is None:
            raise MastersError(f"the stream was ended: {self._failure}")

    def _run(self) -> None:
        seen: object = None
        waited = 0.0
        while not self._closed.wait(POLL_S):
            judge = self._exchange.now
            if judge.masters is None:
                continue
            waited += POLL_S
            state = (judge.detector, signature_of(judge.detector.bundle.path))
            if state == seen and waited < LOOK_S:
                continue
            seen = state
            waited = 0.0
            self._failure = self._fault(judge.masters, judge.detector)
            if self._failure is not None:
                self._end()
                return

    def _fault(self, rule: MastersRule, detector: Detector) -> str | None:
        try:
            fault = rule.fault(detector)
        except AuditError as error:
            # The check was young enough at the last look, and the next one may succeed.
            if not self._unread:
                warn(f"warning: {error}; the check of master parts is looked for again")
            self._unread = True
            return None
        self._unread = False
        return fault
