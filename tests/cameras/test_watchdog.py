"""What a live camera reports about its source: stalls, old and damaged frames, and changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fakes.clock import FakeClock
from fakes.live_camera import WAIT_S, Hang, Scripted, greys

from flawline.cameras import CameraError, Frame, events
from flawline.cameras.changes import FrameChanges
from flawline.cameras.clock import SystemClock
from flawline.cameras.events import MOST_WAITING, EventQueue
from flawline.cameras.grabbed import CorruptFrame, Grabbed, PermanentError
from flawline.cameras.live_options import LiveOptions
from flawline.options import OptionError, parse_options

IMAGE = np.full((4, 4), 7, np.uint8)


@pytest.fixture
def hang() -> Iterator[Hang]:
    hang = Hang()
    yield hang
    hang.release()


def texts(camera: Scripted, name: str) -> list[str]:
    return [event.text for event in camera.reported if event.name == name]


def test_a_frame_has_an_age_that_the_wall_clock_does_not_change() -> None:
    clock = FakeClock()
    camera = Scripted([Grabbed(IMAGE, 99.5)], clock=clock)
    (frame,) = camera
    clock.wall_offset += 3600.0
    assert frame.age(clock.monotonic()) == pytest.approx(0.5)
    clock.advance(0.25)
    assert frame.age(clock.monotonic()) == pytest.approx(0.75)
    assert frame.captured_at == pytest.approx(1_700_000_000.0 + 99.5)
    assert Frame("file", 0, IMAGE).age(clock.monotonic()) is None


@pytest.mark.parametrize("hours", [1, -1])
def test_a_jump_of_the_wall_clock_is_neither_a_stall_nor_an_old_frame(hours: int) -> None:
    clock = FakeClock()
    taken = threading.Event()

    def jump() -> int:
        assert taken.wait(WAIT_S)
        clock.wall_offset += hours * 3600.0
        clock.advance(0.04)
        return 2

    camera = Scripted([1, jump], clock=clock)
    frames = iter(camera)
    assert next(frames).image[0, 0] == 1
    taken.set()
    second = next(frames)
    assert second.image[0, 0] == 2
    assert second.age(clock.monotonic()) == 0
    assert next(frames, None) is None
    assert camera.reported == []
    assert camera.counts() == {
        "captured": 2,
        "dropped": 0,
        "corrupt": 0,
        "stale": 0,
        "reconnects": 0,
    }


def test_a_frame_that_comes_too_late_is_left_out_and_counted() -> None:
    # As after a stall: the driver returns the frame that it had waiting.
    camera = Scripted([Grabbed(IMAGE, 97.9), 5])
    assert greys(camera) == [5]
    assert camera.stale == 1
    assert camera.captured == 2
    assert texts(camera, events.STALE) == [
        "camera scripted://: a frame was left out that is 2.1 s old; max_age is 1.5 s"
    ]


def test_a_frame_that_waited_too_long_for_its_consumer_is_left_out(hang: Hang) -> None:
    clock = FakeClock()
    taken = threading.Event()

    def second() -> int:
        assert taken.wait(WAIT_S)
        return 2

    camera = Scripted([1, second, hang], clock=clock, max_age=0.5)
    frames = iter(camera)
    next(frames)
    taken.set()
    # The second frame is in the slot, because the next one was requested from the driver.
    assert hang.reached.wait(WAIT_S)
    clock.advance(0.6)
    # The third frame, 9, comes when the consumer has taken the second.
    clock.on_wait = lambda timeout: camera.stale and hang.release()
    assert next(frames).image[0, 0] == 9
    assert camera.stale == 1
    assert "0.6 s old; max_age is 0.5 s" in texts(camera, events.STALE)[0]


def test_a_frame_of_the_source_may_state_its_time_and_miss_the_limit() -> None:
    old = Frame("sensor 7", 0, IMAGE, captured_mono=97.0)
    new = Frame("sensor 7", 0, IMAGE, captured_mono=99.0)
    camera = Scripted([old, new])
    (frame,) = camera
    assert frame.captured_mono == 99.0
    assert frame.source == "sensor 7"
    assert camera.stale == 1


def test_frames_that_the_driver_dropped_are_counted() -> None:
    camera = Scripted([Grabbed(IMAGE, 100.0), Grabbed(IMAGE, 100.0, missed=4)])
    indices = [frame.index for frame in camera]
    assert indices[-1] == 5
    assert camera.captured == 6
    assert camera.dropped == 6 - len(indices)


def test_an_exclusive_camera_is_opened_when_the_capture_before_has_released_it(hang: Hang) -> None:
    class Exclusive(Scripted):
        exclusive = True
        users = 0

        def _wait_for_release(self) -> None:
            if self.reconnects:
                # Until then, the capture before this one has the camera open.
                hang.release()
            super()._wait_for_release()

        def _open(self) -> list[Any]:
            if self.users:
                raise CameraError("camera scripted://: is used by another program")
            self.users += 1
            return super()._open()

        def _release(self, handle: list[Any]) -> None:
            self.users -= 1

    clock = FakeClock()
    camera = Exclusive([1, hang], [2], clock=clock, first_frame=1e6)
    frames = iter(camera)
    next(frames)
    assert hang.reached.wait(WAIT_S)
    clock.advance(camera.limits.stall)
    assert next(frames).image[0, 0] == 2
    assert [event.name for event in camera.reported] == [events.STALLED, events.RECOVERED]


def test_a_stall_with_damaged_frames_says_so(hang: Hang) -> None:
    clock = FakeClock()

    taken = threading.Event()

    def damaged() -> Exception:
        assert taken.wait(WAIT_S)
        clock.advance(1.0)
        return CorruptFrame("a slice is missing")

    camera = Scripted([1, damaged, damaged, damaged, hang], clock=clock, restarts=1)
    frames = iter(camera)
    next(frames)
    taken.set()
    with pytest.raises(CameraError, match="gone; given up after 1 attempts"):
        next(frames)
    assert camera.corrupt == 3
    assert camera.captured == 1
    assert "a damaged frame was left out: a slice is missing" in texts(camera, events.CORRUPT)[0]
    assert texts(camera, events.STALLED) == [
        "camera scripted://: only damaged or old frames, 3 of them, for 3 s; "
        "it is opened again (attempt 1 of 1)"
    ]


def test_the_first_frame_may_take_longer_than_the_others(hang: Hang) -> None:
    clock = FakeClock()
    camera = Scripted([hang], [1], clock=clock, first_frame=20.0, stall=3.0)

    def pass_time() -> None:
        assert hang.reached.wait(WAIT_S)
        clock.advance(19.9)
        assert camera.reconnects == 0
        clock.advance(0.2)

    thread = threading.Thread(target=pass_time)
    thread.start()
    assert greys(camera) == [1]
    thread.join(WAIT_S)
    assert texts(camera, events.STALLED)[0].startswith("camera scripted://: no frame for 20 s;")


def test_a_camera_that_never_gives_a_frame_is_given_up_after_the_window() -> None:
    clock = FakeClock()
    hangs = [Hang() for _ in range(9)]
    camera = Scripted(*[[hang] for hang in hangs], clock=clock, first_frame=10.0, window=25.0)
    # Each attempt waits for the whole time, which the clock passes over.
    clock.on_wait = lambda timeout: setattr(clock, "now", clock.now + timeout)
    with pytest.raises(CameraError, match=r"no frame for 10 s; given up after 3 attempts in 3\d s"):
        list(camera)
    for hang in hangs:
        hang.release()


def test_a_failure_and_the_return_of_the_camera_are_reported() -> None:
    camera = Scripted([1, CameraError("camera scripted://: torn")], [2])
    greys(camera)
    assert [event.name for event in camera.reported] == [events.FAILED, events.RECOVERED]
    failed, recovered = [event.text for event in camera.reported]
    assert failed == "camera scripted://: torn; it is opened again (attempt 1 of 60)"
    assert recovered.startswith("camera scripted://: gives frames again after 0.")


def test_an_error_that_opening_again_cannot_repair_ends_the_camera_at_once() -> None:
    camera = Scripted([1, CameraError("torn")], [PermanentError("wrong password")], [2])
    with pytest.raises(PermanentError, match=r"^wrong password$"):
        list(camera)
    assert camera.opens == [[2]]


def test_a_changed_resolution_and_pixel_format_are_reported_once() -> None:
    queue = EventQueue("line")
    changes = FrameChanges()
    mono = np.zeros((48, 64), np.uint8)
    bgr = np.zeros((48, 64, 3), np.uint8)
    deep = np.zeros((48, 64), np.uint16)
    for image in (mono, mono, bgr, bgr[:24], bgr[:24]):
        changes.note(Frame("line", 0, image), queue)
    changes.note(Frame("line", 0, None, "lost"), queue)
    changes.note(Frame("line", 0, deep[:24], bit_depth=12), queue)
    changes.note(Frame("line", 0, deep[:24], bit_depth=10), queue)
    assert [(event.name, event.text) for event in queue.take()] == [
        (
            "pixel_format",
            "camera line: the pixel format changed from mono of 8 bits to bgr of 8 bits",
        ),
        ("resolution", "camera line: the resolution changed from 64x48 to 64x24"),
        (
            "pixel_format",
            "camera line: the pixel format changed from bgr of 8 bits to mono of 12 bits",
        ),
        (
            "pixel_format",
            "camera line: the pixel format changed from mono of 12 bits to mono of 10 bits",
        ),
    ]


def test_a_live_camera_reports_a_changed_resolution_with_the_frame() -> None:
    taken = threading.Event()

    def small() -> Frame:
        assert taken.wait(WAIT_S)
        return Frame("scripted://", 0, IMAGE[:2])

    camera = Scripted([1, small])
    frames = iter(camera)
    next(frames)
    taken.set()
    next(frames)
    assert [event.name for event in camera.reported] == [events.RESOLUTION]


def test_a_consumer_that_is_busy_for_long_finds_a_limited_number_of_events() -> None:
    queue = EventQueue("line")
    for _ in range(3 * MOST_WAITING):
        queue.add(events.CORRUPT, "torn")
    assert len(queue.take()) == MOST_WAITING
    assert not queue


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stall": "0"}, "stall must be above 0"),
        ({"first_frame": "nan"}, "first_frame must be above 0"),
        ({"window": "-1"}, "window must be above 0"),
        ({"stall": "1", "max_age": "1.5"}, "max_age must be at most 1, the time of a stall"),
        ({"restarts": "-1"}, "restarts must be at least 0"),
    ],
)
def test_wrong_limits_are_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_options(LiveOptions, values)
    assert parse_options(LiveOptions, {"stall": "1"}).age_limit == 0.5


@pytest.mark.parametrize("timeout", [1e12, float("inf")])
def test_a_time_may_be_longer_than_a_lock_can_wait(timeout: float) -> None:
    changed = threading.Condition()
    answers = iter([False, True])

    def wake() -> None:
        with changed:
            changed.notify_all()

    with changed:
        waker = threading.Thread(target=wake)
        # It gets the condition when the wait has begun.
        waker.start()
        assert SystemClock().wait_for(changed, lambda: next(answers), timeout)
    waker.join()
