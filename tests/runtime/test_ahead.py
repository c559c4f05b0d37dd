"""Preparing ahead: the next item is made while the one before is consumed, and never too early."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from fakes.clock import FakeClock
from fakes.live_camera import WAIT_S

from flawline.cameras import CameraError
from flawline.runtime.ahead import Ahead
from flawline.runtime.image import Image
from flawline.runtime.signals import signal_handlers
from flawline.runtime.station.batches import SignalSafeEvent


def grey(value: int) -> Image:
    return np.full((4, 4, 3), value, np.uint8)


def nothing() -> None:
    """Stop items that end by themselves."""


def test_the_next_item_is_prepared_while_the_one_before_is_consumed() -> None:
    made: queue.SimpleQueue[int] = queue.SimpleQueue()

    def prepare(item: int) -> Image:
        made.put(item)
        return grey(item)

    values = []
    with Ahead(iter(range(5)), prepare, nothing) as items:
        for prepared in items:
            # Of the item itself, and of the next one unless it is the last.
            for expected in {prepared.item, min(prepared.item + 1, 4)} - set(values):
                assert made.get(timeout=WAIT_S) == expected
                values.append(expected)
            assert isinstance(prepared.input, np.ndarray)
            assert prepared.input.max() == prepared.item
    assert values == list(range(5))


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_is_fetched_than_may_wait(depth: int) -> None:
    fetched = []
    full = threading.Event()

    def endless() -> Iterator[int]:
        while True:
            fetched.append(len(fetched))
            # What waits, and the one that the consumer has.
            if len(fetched) == depth + 1:
                full.set()
            yield fetched[-1]

    with Ahead(endless(), grey, nothing, depth) as items:
        assert next(items).item == 0
        assert full.wait(WAIT_S)
        for expected in range(1, 50):
            assert next(items).item == expected
            # Another one may be on its way.
            assert len(fetched) <= expected + 1 + depth
    assert not items._thread.is_alive()


@pytest.mark.parametrize("failing", ["items", "prepare"])
def test_a_failure_comes_after_the_items_before_it(failing: str) -> None:
    def torn() -> Iterator[int]:
        yield from range(2)
        if failing == "items":
            raise CameraError("the file is torn")
        yield 2

    def prepare(item: int) -> Image:
        if item == 2:
            raise CameraError("the file is torn")
        return grey(item)

    with Ahead(torn(), prepare, nothing) as items:
        assert [next(items).item for _ in range(2)] == [0, 1]
        for _ in range(2):
            with pytest.raises(CameraError, match="the file is torn"):
                next(items)


def test_a_consumer_that_leaves_stops_the_items() -> None:
    stopped = threading.Event()

    def waiting() -> Iterator[int]:
        yield 0
        assert stopped.wait(WAIT_S)

    with Ahead(waiting(), grey, stopped.set) as items:
        next(items)
    assert not items._thread.is_alive()
    ended = Ahead(iter([1]), grey, lambda: pytest.fail("the items have ended already"))
    with ended as items:
        assert [prepared.item for prepared in items] == [1]


class Line:
    """Items that take 2 seconds to be prepared. The first one took the consumer 10 seconds.

    The clock is then at 112, and the second item has been prepared since 104.
    """

    def __init__(self, newest: bool) -> None:
        self.fetched: queue.SimpleQueue[float] = queue.SimpleQueue()
        self.waits: queue.SimpleQueue[float] = queue.SimpleQueue()
        self.clock = FakeClock(self.waits.put)
        made: queue.SimpleQueue[int] = queue.SimpleQueue()

        def items() -> Iterator[int]:
            for item in range(3):
                self.fetched.put(self.clock.now)
                yield item

        def prepare(item: int) -> Image:
            self.clock.now += 2
            made.put(item)
            return grey(item)

        self.ahead = Ahead(items(), prepare, nothing, newest=newest, clock=self.clock)
        self.ahead.__enter__()
        assert next(self.ahead).item == 0
        for item in range(2):
            assert made.get(timeout=WAIT_S) == item
        self.clock.advance(8)
        assert [self.fetched.get(timeout=WAIT_S) for _ in range(2)] == [100, 102]


def test_a_newest_frame_is_fetched_so_that_it_does_not_wait_for_the_engine() -> None:
    line = Line(newest=True)
    assert next(line.ahead).item == 1
    # 10 seconds for the engine, less 2 for the preparation.
    while line.waits.get(timeout=WAIT_S) != 8:
        assert line.fetched.empty()
    line.clock.advance(8)
    assert line.fetched.get(timeout=WAIT_S) == 120
    line.ahead.close()


def test_a_newest_frame_is_fetched_at_once_if_the_engine_is_done_early() -> None:
    line = Line(newest=True)
    assert next(line.ahead).item == 1
    while line.waits.get(timeout=WAIT_S) != 8:
        assert line.fetched.empty()
    assert next(line.ahead).item == 2
    assert line.fetched.get(timeout=WAIT_S) == 112
    line.ahead.close()


def test_other_items_are_fetched_as_early_as_possible() -> None:
    line = Line(newest=False)
    assert next(line.ahead).item == 1
    assert line.fetched.get(timeout=WAIT_S) == 112
    assert line.waits.empty()
    line.ahead.close()


@pytest.mark.alone
@pytest.mark.parametrize("several", [False, True])
def test_a_signal_that_does_not_wake_the_main_thread_is_handled_soon(several: bool) -> None:
    stopped = threading.Event()
    changed = SignalSafeEvent()

    def items() -> Iterator[int]:
        # The main thread waits by now. Python handles a signal in it, whichever thread gets it.
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        assert stopped.wait(WAIT_S)
        changed.set()
        yield from ()

    handlers = {signal.SIGUSR1: lambda *_: stopped.set()}
    with signal_handlers(handlers), Ahead(items(), grey, stopped.set) as ahead:
        if several:
            while not stopped.is_set():
                changed.wait(None)
        assert list(ahead) == []
