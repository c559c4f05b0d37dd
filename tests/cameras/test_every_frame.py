"""Live cameras with every_frame: all frames in order, and what is lost keeps its place."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fakes.clock import FakeClock
from fakes.live_camera import WAIT_S, Scripted

from flawline.cameras import CameraError, Frame, frame_queue, open_camera
from flawline.cameras.capture import LOST, REOPENED
from flawline.cameras.grabbed import CorruptFrame, EndOfStream, Grabbed
from flawline.cameras.synthetic import Synthetic, SyntheticOptions

FULL = "2 images were waiting already; inspect faster, or let more wait with queue=N"


def every(*opens: list[Any], **options: Any) -> Scripted:
    return Scripted(*opens, every_frame=True, **options)


def contents(frames: list[Frame]) -> list[int | str | None]:
    """Grey level of each frame, or its fault."""
    found: list[int | str | None] = []
    for frame in frames:
        found.append(frame.fault if frame.image is None else int(frame.image[0, 0]))
    return found


class Slow:
    """Takes one frame, and the others when the capture has come to the end of its script."""

    def __init__(self) -> None:
        self.captured = threading.Event()

    def end(self) -> Exception:
        self.captured.set()
        return EndOfStream()

    def frames(self, camera: Scripted) -> list[Frame]:
        frames = iter(camera)
        first = next(frames)
        assert self.captured.wait(WAIT_S)
        return [first, *frames]


def test_a_slow_consumer_gets_every_frame_in_order() -> None:
    slow = Slow()
    camera = every([1, 2, 3, 4, 5, slow.end])
    frames = slow.frames(camera)
    assert contents(frames) == [1, 2, 3, 4, 5]
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert camera.counts() == {
        "captured": 5,
        "dropped": 0,
        "corrupt": 0,
        "stale": 0,
        "reconnects": 0,
    }


def test_a_frame_that_does_not_fit_keeps_its_place_without_its_image() -> None:
    slow = Slow()
    taken = threading.Event()

    def after_the_first() -> int:
        assert taken.wait(WAIT_S)
        return 2

    camera = every([1, after_the_first, 3, 4, 5, slow.end], queue=2)
    frames = iter(camera)
    first = next(frames)
    taken.set()
    assert slow.captured.wait(WAIT_S)
    assert contents([first, *frames]) == [1, 2, 3, FULL, FULL]
    assert camera.captured == 5
    assert camera.dropped == 2


def test_damaged_and_lost_frames_keep_their_places() -> None:
    lost = Grabbed(np.full((4, 4), 5, np.uint8), 100.0, missed=2)
    camera = every([1, CorruptFrame("torn"), lost, CorruptFrame("torn", missed=1), 9])
    frames = list(camera)
    damaged = "the frame is damaged: torn"
    assert contents(frames) == [1, damaged, LOST, LOST, 5, LOST, damaged, 9]
    assert [frame.index for frame in frames] == list(range(8))
    assert camera.corrupt == 2
    assert camera.dropped == 3
    assert camera.captured == 6
    # The same script without the option leaves them out.
    newest = Scripted([CorruptFrame("torn", missed=1), 9])
    assert contents(list(newest)) == [9]
    assert newest.counts()["dropped"] == 1


def test_an_image_that_cannot_be_converted_keeps_its_place() -> None:
    class Unreadable(Scripted):
        def _convert(self, payload: Any) -> np.ndarray:
            if payload[0, 0] == 2:
                raise CorruptFrame("half of it is missing")
            image: np.ndarray = payload
            return image

    camera = Unreadable([1, 2, 3], every_frame=True)
    assert contents(list(camera)) == [1, "the frame is damaged: half of it is missing", 3]
    assert camera.corrupt == 1


def test_frames_that_wait_outlive_the_failure_and_one_fault_stands_for_the_gap() -> None:
    slow = Slow()
    failed = threading.Event()

    def fail() -> Exception:
        failed.set()
        return CameraError("torn off")

    camera = every([1, 2, 3, fail], [CameraError("still away")], [7, 8, slow.end])
    frames = iter(camera)
    first = next(frames)
    assert failed.wait(WAIT_S)
    assert contents([first, *frames]) == [1, 2, 3, REOPENED, 7, 8]
    assert camera.reconnects == 2
    assert [event.name for event in camera.reported].count("recovered") == 1


@pytest.mark.parametrize("limit", [None, 2.0])
def test_a_frame_may_wait_as_long_as_max_age_says(limit: float | None) -> None:
    clock = FakeClock()
    slow = Slow()
    camera = every([1, 2, slow.end], clock=clock, max_age=limit)
    frames = iter(camera)
    next(frames)
    assert slow.captured.wait(WAIT_S)
    clock.advance(2.5)
    (second,) = frames
    expected: int | str = 2
    if limit is not None:
        expected = "its image was 2.5 s old; max_age is 2 s"
    assert contents([second]) == [expected]
    assert camera.stale == int(limit is not None)


def test_frames_that_wait_at_a_stop_count_as_dropped() -> None:
    slow = Slow()
    camera = every([1, 2, 3, slow.end])
    frames = iter(camera)
    next(frames)
    assert slow.captured.wait(WAIT_S)
    camera.stop()
    assert list(frames) == []
    assert camera.dropped == 2


def test_a_consumer_that_hangs_ends_the_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_queue, "MOST_WAITING", 5)
    camera = every([Grabbed(np.zeros((4, 4), np.uint8), 100.0, missed=9)], restarts=0)
    with pytest.raises(CameraError, match="5 frames wait for their verdicts; check why"):
        list(camera)


def test_the_test_pattern_gives_every_frame() -> None:
    options = SyntheticOptions(
        width=64, height=48, fps=1000, frames=40, every_frame=True, queue=40, faults="3:missing"
    )

    def frames(camera: Synthetic) -> Iterator[Frame]:
        with camera:
            yield from camera

    found = list(frames(Synthetic("", options, FakeClock())))
    assert len(found) == 40
    assert [frame.index for frame in found if frame.image is None] == [3]
    assert found[3].fault == LOST


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("queue=4", "queue needs every_frame=1, or a trigger where the camera has one"),
        ("every_frame=1&queue=0", "queue must be from 1 to 1000"),
        ("every_frame=1&queue=1001", "queue must be from 1 to 1000"),
        ("every_frame=perhaps", "option every_frame=perhaps: not true or false"),
    ],
)
def test_wrong_options_are_one_line(query: str, message: str) -> None:
    with pytest.raises(CameraError, match=message):
        open_camera(f"synthetic://?{query}")


def test_a_trigger_has_a_queue_without_every_frame() -> None:
    open_camera("synthetic://?trigger=line1&queue=4").close()
