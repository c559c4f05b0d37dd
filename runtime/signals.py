"""SIGTERM and SIGHUP end a command as Ctrl-C does, and wait for work that is not divided.

Services, containers and batch systems stop a process with SIGTERM. The default action of the system
ends it at once: temporary files stay, and nothing is saved.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

TERMINATION = (signal.SIGTERM, signal.SIGHUP)
# Added to the number of a signal, it is the exit code that a shell reports.
SIGNAL_CODE = 128
# The longest wait of the main thread, in seconds. A signal that arrives just before the wait begins
# does not end it, and its handler is called after it.
SIGNAL_S = 0.5


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM or SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = SIGNAL_CODE + number


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Raise Terminated on SIGTERM and SIGHUP within the block, as Ctrl-C raises KeyboardInterrupt.

    Ctrl-C raises it again where `flawline.interrupts.end_quietly` has changed that. Does nothing
    outside the main thread, which alone receives signals, and for a signal that the process
    ignores, as under `nohup`, or handles otherwise.
    """
    handlers: dict[int, Any] = {}
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        handlers[signal.SIGINT] = signal.default_int_handler
    for number in TERMINATION:
        if signal.getsignal(number) == signal.SIG_DFL:
            handlers[number] = _terminate
    with signal_handlers(handlers):
        yield


@contextmanager
def signal_handlers(handlers: Mapping[int, Any]) -> Iterator[None]:
    """Set handlers of signals within the block; outside the main thread, do nothing."""
    previous: dict[int, Any] = {}
    try:
        if _is_main():
            for number, handler in handlers.items():
                previous[number] = signal.signal(number, handler)
        yield
    finally:
        for number, former in previous.items():
            signal.signal(number, former)


def uninterrupted() -> AbstractContextManager[None]:
    """Ignore Ctrl-C, SIGTERM and SIGHUP within a block.

    It is for the last moments of a command, so that what is written is not reported as interrupted.
    """
    return signal_handlers(dict.fromkeys((signal.SIGINT, *TERMINATION), signal.SIG_IGN))


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
            for number in (signal.SIGINT, *TERMINATION):
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
        if number in TERMINATION:
            interrupt = Terminated(number)
        if self._pending is not None:
            raise interrupt
        self._pending = interrupt


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise Terminated(number)


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
