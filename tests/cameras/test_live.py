"""Live cameras: the newest frame wins, and failures restart the capture within a budget."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from fakes.clock import FakeClock
from fakes.live_camera import WAIT_S, Hang, Scripted, greys

from flawline.cameras import CameraError, Frame
from flawline.cameras.grabbed import EndOfStream
from flawline.cameras.restarts import RestartBudget
from flawline.cameras.synthetic import Synthetic, SyntheticOptions


@pytest.fixture
def hang() -> Any:
    hang = Hang()
    yield hang
    hang.release()


def test_nothing_is_captured_before_the_first_frame_is_requested() -> None:
    class Late(Scripted):
        def __init__(self) -> None:
            super().__init__([1])
            # A field that is set after the constructor of the base class, and used by the capture.
            self.offset = 6

        def _grab(self, handle: list[Any]) -> Any:
            return super()._grab(handle) + np.uint8(self.offset)

    threads = threading.active_count()
    camera = Late()
    assert camera.opens == [[1]]
    assert threading.active_count() == threads
    assert greys(camera) == [7]


def test_a_camera_that_was_closed_before_it_was_used_opens_nothing() -> None:
    camera = Scripted([1])
    camera.close()
    assert list(camera) == []
    assert camera.opens == [[1]]


def test_the_newest_frame_wins_and_drops_are_counted() -> None:
    seen = threading.Event()
    captured = threading.Event()

    def wait_then(grey: int) -> Any:
        def grab() -> int:
            assert seen.wait(WAIT_S)
            return grey

        return grab

    def last() -> Exception:
        # Frame 5 is in the slot: the previous call of _grab was put there before this one.
        captured.set()
        return EndOfStream()

    camera = Scripted([1, wait_then(2), 3, 4, 5, last])
    frames = iter(camera)
    assert next(frames).image[0, 0] == 1
    seen.set()
    assert captured.wait(WAIT_S)
    newest = next(frames)
    assert newest.image[0, 0] == 5
    assert newest.index == 4
    assert camera.dropped == 3
    assert camera.captured == 5
    assert next(frames, None) is None


def test_iterating_again_continues_the_capture() -> None:
    go = threading.Event()

    def second() -> int:
        assert go.wait(WAIT_S)
        return 2

    camera = Scripted([1, second])
    assert next(iter(camera)).index == 0
    go.set()
    assert greys(camera) == [2]
    assert camera.opens == []


def test_a_source_may_declare_the_facts_of_its_frames() -> None:
    deep = np.full((4, 4), 4095, np.uint16)
    camera = Scripted([Frame("sensor 7", 0, deep, bit_depth=12, captured_mono=99.0)])
    (frame,) = camera
    assert frame.bit_depth == 12
    assert frame.source == "sensor 7"
    assert frame.captured_mono == 99.0
    assert frame.captured_at == camera.clock.time() - 1.0


def test_frames_are_labelled_with_the_wall_clock() -> None:
    camera = Scripted([1])
    (frame,) = camera
    assert frame.captured_at == camera.clock.time()


def test_an_image_of_another_type_is_a_fault_and_the_stream_continues() -> None:
    class Float(Scripted):
        def _grab(self, handle: list[Any]) -> Any:
            return super()._grab(handle).astype(np.float32)

    (frame,) = Float([1])
    assert frame.image is None
    assert "float32" in (frame.fault or "")


def test_a_failing_camera_is_opened_again() -> None:
    camera = Scripted([1, CameraError("torn")], [2])
    assert greys(camera)[-1] == 2
    assert camera.reconnects == 1


def test_every_exception_of_a_driver_reaches_the_consumer_and_the_budget_ends_it() -> None:
    camera = Scripted([1, RuntimeError("driver bug")], restarts=2)
    with pytest.raises(CameraError, match=r"given up after 2 attempts"):
        list(camera)


def test_a_driver_that_hangs_is_abandoned(hang: Hang) -> None:
    camera = Scripted([1, hang], [2])

    def pass_time() -> None:
        assert hang.reached.wait(WAIT_S)
        while camera.reconnects == 0:
            camera.clock.sleep(1.0)

    frames = iter(camera)
    # Taken before the time passes, since it would be too old afterwards.
    assert next(frames).image[0, 0] == 1
    thread = threading.Thread(target=pass_time)
    thread.start()
    assert greys(camera) == [2]
    thread.join(WAIT_S)


def test_closing_ends_a_waiting_consumer(hang: Hang) -> None:
    waiting = threading.Event()
    camera = Scripted([1, hang], clock=FakeClock(lambda timeout: waiting.set()))
    frames = iter(camera)
    next(frames)
    waiting.clear()

    def close() -> None:
        assert waiting.wait(WAIT_S)
        camera.stop()

    thread = threading.Thread(target=close)
    thread.start()
    assert list(frames) == []
    thread.join(WAIT_S)


def test_closing_during_a_restart_ends_at_once_and_opens_nothing() -> None:
    class Closed(Scripted):
        def _pause(self, seconds: float) -> bool:
            self.stop()
            return super()._pause(seconds)

    camera = Closed([1, CameraError("torn")], [2])
    assert greys(camera) == [1]
    assert camera.opens == [[2]]


def test_the_capture_thread_may_close_its_camera() -> None:
    camera = Scripted([1, lambda: camera.close() or 2])
    # The frame is lost if the camera is closed before the consumer takes it.
    assert greys(camera) in ([1], [])


def test_a_stop_discards_the_frame_that_was_not_taken_yet() -> None:
    captured = threading.Event()
    camera = Scripted([1, 2, lambda: captured.set() or EndOfStream()])
    frames = iter(camera)
    next(frames)
    assert captured.wait(WAIT_S)
    camera.stop()
    assert list(frames) == []


def test_a_driver_that_fails_twice_is_reported_with_the_first_cause() -> None:
    class Twice(Scripted):
        def _release(self, handle: list[Any]) -> None:
            raise RuntimeError("again")

    with pytest.raises(CameraError, match="torn"):
        list(Twice([1, CameraError("torn")], restarts=0))


def test_the_restart_budget_forgets() -> None:
    budget = RestartBudget(2, window=10)
    spent = [budget.spend(now) for now in (0, 1, 2, 9, 10.5)]
    assert spent == [True, True, False, False, True]


def test_the_pause_before_a_restart_doubles_and_is_shortened_by_up_to_a_half() -> None:
    jitter = 0.0
    budget = RestartBudget(2000, window=1e9, jitter=lambda: jitter)
    pauses = []
    for now in range(7):
        pauses.append(budget.backoff())
        budget.spend(now)
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])
    jitter = 1.0
    assert budget.backoff() == pytest.approx(1.0)
    for now in range(1990):
        budget.spend(now)
    assert budget.backoff() == pytest.approx(1.0)


def test_synthetic_gives_its_frames_at_its_rate_and_ends() -> None:
    clock = FakeClock()
    options = SyntheticOptions(width=64, height=48, fps=50, frames=20)
    camera = Synthetic("", options, clock)
    frames = list(camera)
    assert frames[-1].index == 19
    assert frames[0].image is not None
    assert frames[0].image.shape == (48, 64, 3)
    assert len(frames) + camera.dropped == 20
    assert clock.monotonic() == pytest.approx(100 + 19 / 50)


def test_a_stop_counts_the_frame_that_was_not_taken_as_dropped() -> None:
    captured = threading.Event()
    camera = Scripted([1, 2, lambda: captured.set() or Hang()()])
    frames = iter(camera)
    next(frames)
    assert captured.wait(WAIT_S)
    camera.stop()
    assert camera.captured == 2
    assert camera.dropped == 1
    camera.stop()
    assert camera.dropped == 1


@pytest.mark.parametrize("every_frame", [False, True])
def test_a_frame_that_waited_too_long_after_it_was_handed_out_is_not_judged(
    every_frame: bool,
) -> None:
    """As while the engine, or the whole process, was stopped for a while."""
    clock = FakeClock()
    camera = Scripted([1], clock=clock, every_frame=every_frame, max_age=1.0)
    (frame,) = camera
    assert camera.still_valid(frame) is frame
    clock.advance(1.5)
    found = camera.still_valid(frame)
    assert camera.stale == 1
    if every_frame:
        assert found is not None
        assert found.image is None
        assert found.fault == "its image was 1.5 s old; max_age is 1 s"
        assert camera.still_valid(found) is found
    else:
        assert found is None
