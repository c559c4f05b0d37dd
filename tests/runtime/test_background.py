"""Jobs of a background thread: their order, their limit, their failures, and the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from flawline.runtime.background import BackgroundWorker

LONG = 30.0  # seconds after which a test that hangs fails


@pytest.fixture
def worker() -> Iterator[BackgroundWorker]:
    worker = BackgroundWorker(capacity=100)
    yield worker
    worker.close()


class Gate:
    """A job that begins, and ends when it is opened."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.opened.wait(LONG)


@pytest.fixture
def gate(worker: BackgroundWorker) -> Iterator[Gate]:
    """The thread is busy until the gate is opened."""
    gate = Gate()
    assert worker.submit(gate, 1, wait=False)
    assert gate.begun.wait(LONG)
    yield gate
    gate.opened.set()


def test_jobs_are_done_in_order_beside_the_caller(worker: BackgroundWorker) -> None:
    done: list[tuple[int, int]] = []

    def job(number: int) -> None:
        done.append((number, threading.get_ident()))

    for number in range(20):
        assert worker.submit(lambda number=number: job(number), 1, wait=True)
    worker.drain()
    assert [number for number, _ in done] == list(range(20))
    assert {thread for _, thread in done} != {threading.get_ident()}


def test_a_job_without_room_is_refused_at_once(worker: BackgroundWorker, gate: Gate) -> None:
    done = []
    assert worker.submit(lambda: done.append("first"), 60, wait=False)
    assert not worker.submit(lambda: done.append("refused"), 60, wait=False)
    assert worker.submit(lambda: done.append("small"), 40, wait=False)
    gate.opened.set()
    worker.drain()
    assert done == ["first", "small"]
    # There is room again.
    assert worker.submit(lambda: done.append("later"), 60, wait=False)


def test_one_job_is_accepted_however_large(worker: BackgroundWorker, gate: Gate) -> None:
    assert worker.submit(lambda: None, 10_000, wait=False)
    assert not worker.submit(lambda: None, 1, wait=False)


def test_waiting_for_room_loses_no_job(worker: BackgroundWorker, gate: Gate) -> None:
    done: list[int] = []

    def hand_over() -> None:
        for number in range(10):
            assert worker.submit(lambda number=number: done.append(number), 60, wait=True)

    caller = threading.Thread(target=hand_over)
    caller.start()
    assert not done
    gate.opened.set()
    caller.join(LONG)
    worker.drain()
    assert done == list(range(10))


def test_a_failure_stops_no_other_job_and_is_returned_once(worker: BackgroundWorker) -> None:
    done = []

    def fail() -> None:
        raise ValueError("broken")

    for job in (fail, lambda: done.append(1), fail):
        worker.submit(job, 1, wait=True)
    worker.drain()
    assert done == [1]
    assert [str(failure) for failure in worker.take_failures()] == ["broken", "broken"]
    assert worker.take_failures() == []


def test_closing_waits_for_the_rest_and_ends_the_thread() -> None:
    worker = BackgroundWorker(capacity=100)
    done: list[int] = []
    for number in range(5):
        worker.submit(lambda number=number: done.append(number), 1, wait=True)
    worker.close()
    assert done == list(range(5))
    worker.close()
    with pytest.raises(RuntimeError, match="closed"):
        worker.submit(lambda: None, 1, wait=True)


def test_closing_without_a_job_starts_no_thread() -> None:
    before = threading.active_count()
    BackgroundWorker(capacity=1).close()
    assert threading.active_count() == before


def test_an_end_that_is_bounded_gives_up_what_waits(gate: Gate, worker: BackgroundWorker) -> None:
    done: list[int] = []
    assert worker.submit(lambda: done.append(1), 1, wait=False)
    assert not worker.drain(timeout=0)
    worker.close(timeout=0)
    gate.opened.set()
    worker.close()
    assert not done


def test_jobs_that_are_given_up_leave_room_for_others(gate: Gate, worker: BackgroundWorker) -> None:
    done: list[int] = []
    assert worker.submit(lambda: done.append(1), 90, wait=False)
    worker.discard()
    assert worker.submit(lambda: done.append(2), 90, wait=False)
    gate.opened.set()
    assert worker.drain(LONG)
    assert done == [2]
