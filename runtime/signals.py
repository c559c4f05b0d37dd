"""SIGTERM ends a command as Ctrl-C does, and both can wait for a piece of work that is not divided.

Services, containers and batch systems stop a process with SIGTERM. The default action of the system
ends it at once: temporary files stay, and nothing is saved.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED = 143  # 128 + SIGTERM, as a shell reports it


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise Terminated on SIGTERM within the block, where Ctrl-C raises KeyboardInterrupt.

    Does nothing outside the main thread, which alone receives signals, and where the process
    ignores SIGTERM or handles it otherwise.
    """
    if not _is_main() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class DelayedSignals:
    """Delays Ctrl-C and SIGTERM until `deliver` is called, or until the end of the `with` block.

    A second signal is not delayed, so that work that hangs can be ended. Does nothing outside the
    main thread.
    """

    def __init__(self) -> None:
        self._pending: KeyboardInterrupt | None = None
        self._previous: dict[int, object] = {}

    def deliver(self) -> None:
        """Raise KeyboardInterrupt or Terminated if a signal has arrived."""
        if self._pending is not None:
            pending = self._pending
            self._pending = None
            raise pending

    def __enter__(self) -> DelayedSignals:
        if _is_main():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._delay(number)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()
        if kind is None:
            self.deliver()

    def _delay(self, number: int) -> None:
        handler = signal.getsignal(number)
        # Only a handler that would raise is replaced: any other has a purpose of its own.
        if handler not in (signal.default_int_handler, _terminate):
            return
        self._previous[number] = handler
        signal.signal(number, self._arrive)

    def _arrive(self, number: int, _frame: FrameType | None) -> None:
        interrupt = KeyboardInterrupt()
        if number == signal.SIGTERM:
            interrupt = Terminated()
        if self._pending is not None:
            raise interrupt
        self._pending = interrupt


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
