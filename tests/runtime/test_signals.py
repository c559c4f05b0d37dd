"""SIGTERM ends a command as Ctrl-C does; both wait for the end of a step of work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from flawline.interrupts import end_quietly
from flawline.runtime.console import run_command
from flawline.runtime.signals import DelayedSignals, Terminated, termination_interrupts


@pytest.fixture(autouse=True)
def _handlers_of_python() -> Iterator[None]:
    """Start with the handlers that Python has at its start, whatever ran before in this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    """Call the handler of a signal, as Python does after the signal has arrived.

    A real signal would crash the test process where OpenVINO left a stack for signals that it had
    freed. The tests of commands send real ones to processes of their own.
    """
    handler = signal.getsignal(number)
    assert callable(handler)
    handler(number, None)


def test_sigterm_ends_a_command_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    def work() -> int:
        try:
            send(signal.SIGTERM)
            return 0
        finally:
            cleaned.append("temporary files")

    assert run_command("flawline-x", work, "interrupted; repeat it") == 143
    assert capsys.readouterr().err == "interrupted; repeat it\n"
    assert cleaned == ["temporary files"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_ctrl_c_interrupts_a_command_whose_start_it_would_have_ended(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> int:
        send(signal.SIGINT)
        return 0

    before = signal.getsignal(signal.SIGINT)
    try:
        end_quietly()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        assert run_command("flawline-x", work, "interrupted; repeat it") == 130
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_quietly()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "interrupted; repeat it\n"


def test_another_handler_of_sigterm_stays() -> None:
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with termination_interrupts():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, previous)


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_signal_waits_until_it_is_delivered(number: int, kind: type[KeyboardInterrupt]) -> None:
    done = []

    def work() -> None:
        with termination_interrupts(), DelayedSignals() as signals:
            send(number)
            done.append("step")
            signals.deliver()
            done.append("next step")

    with pytest.raises(kind):
        work()
    assert done == ["step"]


def test_a_signal_that_was_not_delivered_ends_the_block() -> None:
    with termination_interrupts(), pytest.raises(Terminated), DelayedSignals():
        send(signal.SIGTERM)


def test_a_second_signal_is_not_delayed() -> None:
    done = []

    def work() -> None:
        with DelayedSignals():
            send(signal.SIGINT)
            done.append("first")
            send(signal.SIGINT)
            done.append("second")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["first"]


def test_other_threads_get_no_handlers() -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with termination_interrupts(), DelayedSignals() as signals:
                signals.deliver()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
