"""Triggered cameras: every pulse is one part, in order, with an image or with a reason."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fakes.clock import FakeClock

from flawline.cameras import CameraError, Frame, frame_queue, open_camera, triggered
from flawline.cameras.grabbed import EndOfStream
from flawline.cameras.parts import LOST, Block, BlockNumbers, Pulses
from flawline.cameras.synthetic import Synthetic, SyntheticOptions
from flawline.cameras.trigger_options import TriggerOptions
from flawline.cameras.triggered import REOPENED, TriggeredCamera

WAIT_S = 10.0  # real seconds after which a test that hangs fails


def block(number: int, **changes: Any) -> Block:
    """A block whose image has the grey level of its number."""
    return Block(np.full((4, 4), number, np.uint8), number, **changes)


class Scripted(TriggeredCamera):
    """Plays lists, one for each time that it is opened, of what `_take` returns, raises or calls.

    With trigger=software, `answers` says what each pulse makes the camera give.
    """

    def __init__(self, *opens: list[Any], trigger: str = "line1", **options: Any) -> None:
        self.opens = list(opens)
        self.answers: list[Any] = []
        self._given: queue.SimpleQueue[Any] = queue.SimpleQueue()
        record = TriggerOptions(trigger=trigger, **options)  # type: ignore[arg-type]
        super().__init__("scripted://", record, FakeClock())

    def _pause(self, seconds: float) -> bool:
        # The pauses before a camera is opened again pass at once.
        self.clock.sleep(seconds)
        return super()._pause(0.0)

    def _open(self) -> list[Any]:
        if not self.opens:
            raise CameraError("camera scripted://: gone")
        return list(self.opens.pop(0))

    def _take(self, handle: list[Any]) -> Block | None:
        if handle:
            item = handle.pop(0)
        elif self.trigger == "software":
            try:
                item = self._given.get(timeout=0.01)
            except queue.Empty:
                return None
        else:
            item = EndOfStream()
        if callable(item):
            item = item()
        if isinstance(item, Exception):
            raise item
        return item

    def _fire(self, handle: list[Any]) -> None:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            self._given.put(answer)

    def _release(self, handle: list[Any]) -> None:
        pass


def facts(frames: list[Frame]) -> list[tuple[str | None, int | str | None]]:
    """Part and grey level, or part and fault, of each frame."""
    found = []
    for frame in frames:
        content: int | str | None = frame.fault
        if frame.image is not None:
            content = int(frame.image[0, 0])
        found.append((frame.part, content))
    return found


def consume(camera: TriggeredCamera) -> tuple[threading.Thread, list[Frame]]:
    """Take all frames of a camera in a thread."""
    frames: list[Frame] = []
    thread = threading.Thread(target=lambda: frames.extend(camera), daemon=True)
    thread.start()
    assert camera.wait_until_open()
    return thread, frames


def finish(camera: TriggeredCamera, thread: threading.Thread) -> None:
    camera.end_of_pulses()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_block_numbers_count_what_is_missing() -> None:
    numbers = BlockNumbers(first=1)
    assert [numbers.lost_before(n) for n in (1, 2, 5, None, 7)] == [0, 0, 2, 0, 0]
    assert BlockNumbers(first=0).lost_before(2) == 2
    assert BlockNumbers().lost_before(9) == 0


def test_block_numbers_of_16_bits_continue_with_1() -> None:
    numbers = BlockNumbers(first=65534)
    assert [numbers.lost_before(n) for n in (65534, 65535, 1, 2)] == [0, 0, 0, 0]
    numbers = BlockNumbers(first=65534)
    assert [numbers.lost_before(n) for n in (65534, 2)] == [0, 2]


@pytest.mark.parametrize("number", [5, 3, 50_000])
def test_block_numbers_that_do_not_continue_are_an_error(number: int) -> None:
    numbers = BlockNumbers(first=5)
    numbers.lost_before(5)
    with pytest.raises(CameraError, match=f"went from 5 to {number}"):
        numbers.lost_before(number)
    assert numbers.lost_before(number + 1) == 0


def test_names_from_outside_are_given_in_order_and_others_are_numbers() -> None:
    pulses = Pulses(by_software=False)
    pulses.begin(1)
    pulses.announce("SN7")
    pulses.announce("SN8")
    names = []
    for number in (2, 3, 4):
        names.extend(pulse.name for pulse in pulses.arrive(number))
    assert names == ["SN7", "SN8", "3", "4"]


def test_an_image_without_a_pulse_is_a_fault() -> None:
    pulses = Pulses(by_software=True)
    pulses.begin(1)
    (pulse,) = pulses.arrive(1)
    assert "no pulse" in str(pulse.fault)
    assert pulse.name is None
    assert pulses.send(None, 0.0).name == "1"


def test_every_pulse_of_the_line_is_a_part_also_without_an_image() -> None:
    broken = Block(None, 3, "incomplete")
    camera = Scripted([block(1), None, block(2), broken, block(6), block(7)])
    frames = list(camera)
    assert facts(frames) == [
        ("1", 1),
        ("2", 2),
        ("3", "incomplete"),
        ("4", LOST),
        ("5", LOST),
        ("6", 6),
        ("7", 7),
    ]
    assert [frame.index for frame in frames] == list(range(7))
    assert camera.corrupt == 1
    # The lost blocks were captured by the camera.
    assert camera.dropped == 2
    assert camera.captured == 6


def test_a_camera_that_knows_its_first_block_reports_one_lost_before_it() -> None:
    class Counted(Scripted):
        def _first_block(self, handle: Any) -> int:
            return 1

    camera = Counted([block(2)])
    assert facts(list(camera)) == [("1", LOST), ("2", 2)]
    assert camera.dropped == 1


def test_no_pulse_for_an_hour_is_no_frame_no_fault_and_no_stall() -> None:
    camera = Scripted()

    def pass_an_hour() -> None:
        camera.clock.sleep(3600.0)

    camera.opens = [[pass_an_hour] * 20 + [block(1)] + [pass_an_hour] * 20]
    assert facts(list(camera)) == [("1", 1)]
    assert camera.reconnects == 0


def test_a_full_queue_leaves_images_out_and_no_part() -> None:
    done = threading.Event()
    camera = Scripted(
        [*[block(number) for number in range(1, 8)], lambda: done.set() or EndOfStream()],
        queue=2,
    )
    frames = iter(camera)
    first = next(frames)
    assert done.wait(WAIT_S)
    rest = list(frames)
    found = facts([first, *rest])
    assert [part for part, _ in found] == ["1", "2", "3", "4", "5", "6", "7"]
    judged = [grey for _, grey in found if isinstance(grey, int)]
    # The first frame may be taken before or after the queue is full.
    assert judged in ([1, 2], [1, 2, 3])
    assert camera.dropped == 7 - len(judged)
    assert "2 images were waiting already" in str(rest[-1].fault)


def test_a_lost_camera_is_opened_again_and_the_unknown_parts_are_one_fault() -> None:
    gone = CameraError("camera scripted://: gone")
    camera = Scripted([block(1), gone], [block(1)])
    camera.announce("A")
    camera.announce("B")
    frames = list(camera)
    assert facts(frames) == [("A", 1), ("B", "gone"), (None, REOPENED), ("3", 1)]
    assert camera.reconnects == 1


def test_a_camera_that_is_lost_before_the_first_pulse_is_opened_again() -> None:
    camera = Scripted([None, CameraError("gone")], [block(1)])
    assert facts(list(camera)) == [(None, REOPENED), ("1", 1)]


def test_a_camera_that_cannot_be_opened_is_an_error() -> None:
    with pytest.raises(CameraError, match="gone"):
        list(Scripted())


def test_block_numbers_that_start_again_open_the_camera_again() -> None:
    camera = Scripted([block(4), block(2)], [block(1)])
    assert facts(list(camera)) == [("1", 4), (None, REOPENED), ("2", 1)]


def test_a_driver_that_hangs_is_abandoned_and_its_parts_are_reported() -> None:
    reached = threading.Event()
    release = threading.Event()

    def hang() -> Block:
        reached.set()
        release.wait(WAIT_S)
        return block(9)

    camera = Scripted([hang], [block(1)])
    camera.announce("A")

    def pass_time() -> None:
        assert reached.wait(WAIT_S)
        while camera.reconnects == 0:
            camera.clock.sleep(1.0)

    thread = threading.Thread(target=pass_time)
    thread.start()
    frames = list(camera)
    release.set()
    thread.join(WAIT_S)
    assert facts(frames) == [("A", triggered.HANGS), (None, REOPENED), ("2", 1)]


def test_a_driver_that_answers_late_continues_with_its_block_numbers() -> None:
    reached = threading.Event()
    release = threading.Event()
    done = threading.Event()

    def hang() -> Block:
        reached.set()
        release.wait(WAIT_S)
        return block(2)

    class Counted(Scripted):
        def _first_block(self, handle: Any) -> int:
            return 1

    camera = Counted([block(1), hang, block(3), lambda: done.set() or EndOfStream()])
    frames = iter(camera)
    found = [next(frames)]
    assert reached.wait(WAIT_S)
    camera.announce("A")
    camera.clock.sleep(camera.limits.stall)
    found.append(next(frames))
    release.set()
    assert done.wait(WAIT_S)
    found.extend(frames)
    assert facts(found) == [("1", 1), ("A", triggered.HANGS), ("3", 2), ("4", 3)]
    assert camera.reconnects == 0


def test_software_pulses_name_their_parts() -> None:
    camera = Scripted([], trigger="software")
    camera.answers = [block(1), block(2), block(3)]
    thread, frames = consume(camera)
    for part in ("SN1", None, "SN3"):
        camera.pulse(part)
    finish(camera, thread)
    assert facts(frames) == [("SN1", 1), ("2", 2), ("SN3", 3)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(CameraError("not ready"), "not ready"), (RuntimeError("driver bug"), "RuntimeError: driver")],
)
def test_a_pulse_that_the_camera_refuses_is_a_fault_in_its_place(
    error: Exception, reason: str
) -> None:
    camera = Scripted([], trigger="software")
    camera.answers = [block(1), error, block(2)]
    thread, frames = consume(camera)
    for _ in range(3):
        camera.pulse()
    finish(camera, thread)
    parts = [frame.part for frame in frames]
    assert parts == ["1", "2", "3"]
    assert reason in str(frames[1].fault)
    assert facts(frames)[2] == ("3", 2)


def test_a_refused_pulse_waits_for_the_image_of_the_one_before() -> None:
    pulses = Pulses(by_software=True)
    pulses.begin(1)
    pulses.send(None, 0.0)
    pulses.send(None, 0.0).fault = "refused"
    assert pulses.settled() == []
    assert [pulse.name for pulse in pulses.arrive(1)] == ["1"]
    assert [pulse.fault for pulse in pulses.settled()] == ["refused"]


def test_a_pulse_while_the_camera_is_busy_is_a_fault() -> None:
    camera = Scripted([], trigger="software")
    camera.answers = [None]
    thread, frames = consume(camera)
    camera.pulse()
    sender = threading.Thread(target=camera.pulse)
    sender.start()
    while sender.is_alive():
        camera.clock.sleep(0.1)
        sender.join(0.001)
    camera._given.put(block(1))
    finish(camera, thread)
    assert facts(frames) == [("1", 1), ("2", triggered.BUSY)]


def test_a_pulse_without_an_image_is_a_fault_and_the_camera_is_opened_again() -> None:
    camera = Scripted([], [], trigger="software", answer_s=2.0)
    camera.answers = [lambda: camera.clock.sleep(3.0), block(1)]
    thread, frames = consume(camera)
    camera.pulse("A")
    # The second opening is the one that leaves no list.
    while camera.opens:
        thread.join(0.001)
    assert camera.wait_until_open()
    camera.pulse("B")
    finish(camera, thread)
    (first, second) = facts(frames)
    assert first[0] == "A"
    assert "no image within 2 s" in str(first[1])
    assert second == ("B", 1)


def test_a_pulse_before_the_camera_is_open_is_a_fault() -> None:
    camera = Scripted([], trigger="software")
    camera.pulse("A")
    camera.end_of_pulses()
    assert facts(list(camera)) == [("A", triggered.NOT_OPEN)]


def test_parts_that_wait_when_the_stream_stops_are_counted() -> None:
    done = threading.Event()
    camera = Scripted([block(1), block(2), block(3), lambda: done.set() or EndOfStream()])
    frames = iter(camera)
    next(frames)
    assert done.wait(WAIT_S)
    camera.stop()
    assert list(frames) == []
    assert camera.dropped == 2


def test_a_consumer_that_hangs_is_reported_as_unknown_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frame_queue, "MOST_WAITING", 5)
    camera = Scripted([block(number) for number in range(1, 20)], [block(1)], queue=2)
    camera._start()
    for thread in camera._threads:
        thread.join(WAIT_S)
    assert "check why the inspection hangs" in str(camera._ended)
    found = facts(list(camera))
    assert [part for part, _ in found] == ["1", "2", "3", "4", "5", None, "7"]
    assert found[5] == (None, REOPENED)
    assert found[6] == ("7", 1)


def test_a_part_that_waited_too_long_keeps_its_place_without_its_image() -> None:
    done = threading.Event()
    camera = Scripted(
        [block(1), block(2), lambda: done.set() or EndOfStream()], max_age=1.0, stall=3.0
    )
    frames = iter(camera)
    first = next(frames)
    assert done.wait(WAIT_S)
    camera.clock.sleep(1.5)
    (second,) = frames
    assert facts([first, second]) == [("1", 1), ("2", "its image was 1.5 s old; max_age is 1 s")]
    assert camera.stale == 1


def test_a_part_that_waited_without_a_limit_is_judged_and_has_its_age() -> None:
    done = threading.Event()
    camera = Scripted([block(1), block(2), lambda: done.set() or EndOfStream()])
    frames = iter(camera)
    next(frames)
    assert done.wait(WAIT_S)
    camera.clock.sleep(100.0)
    (second,) = frames
    assert second.image is not None
    assert second.age(camera.clock.monotonic()) == 100.0


def test_pulses_need_a_camera_that_waits_for_them() -> None:
    camera = Scripted([], trigger="off")
    with pytest.raises(CameraError, match="is not open with trigger=software"):
        camera.pulse()
    with pytest.raises(CameraError, match="is not open with a trigger"):
        camera.announce("A")


def test_a_running_camera_counts_incomplete_and_missing_blocks_and_hands_out_none() -> None:
    camera = Scripted([block(1), Block(None, 2, "incomplete"), block(5), block(2)], trigger="off")
    newest = list(camera)[-1]
    assert facts([newest]) == [(None, 2)]
    assert camera.corrupt == 1
    assert camera.captured == 5
    # Blocks 3 and 4, and those that were replaced before they were taken.
    assert camera.dropped >= 2


def test_the_synthetic_line_fails_as_scripted() -> None:
    uri = "synthetic://?trigger=line1&width=64&height=48&fps=1000&frames=9&queue=100"
    with open_camera(f"{uri}&faults=1:damaged,3:missing,6:lost") as camera:
        frames = list(camera)
    assert [frame.part for frame in frames] == ["1", "2", "3", "4", "5", "6", None, "7", "8"]
    faulty = [frame.part for frame in frames if frame.image is None]
    assert faulty == ["2", "4", None]
    drawing = Synthetic("", SyntheticOptions(width=64, height=48))
    for exposure, frame in ((1, frames[0]), (3, frames[2]), (9, frames[8])):
        assert np.array_equal(frame.image, drawing._draw(exposure - 1))


@pytest.fixture
def pulsed(patient_pulses: None) -> Iterator[Callable[[int], list[Frame]]]:
    """Sends software pulses to a synthetic camera whose consumer waits for the last one."""
    with open_camera("synthetic://?trigger=software&width=64&height=48&answer_s=20") as camera:
        assert isinstance(camera, TriggeredCamera)

        def send(count: int) -> list[Frame]:
            def pulses() -> None:
                assert camera.wait_until_open()
                for _ in range(count):
                    camera.pulse()
                camera.end_of_pulses()

            sender = threading.Thread(target=pulses)
            sender.start()
            frames = iter(camera)
            first = next(frames)
            sender.join(WAIT_S)
            return [first, *frames]

        yield send


def test_a_slow_consumer_gets_every_pulse_or_its_number(
    pulsed: Callable[[int], list[Frame]],
) -> None:
    frames = pulsed(100)
    assert [frame.part for frame in frames] == [str(number) for number in range(1, 101)]
    images = sum(frame.image is not None for frame in frames)
    # The first is taken while the queue fills, the last may come while it is emptied.
    assert 16 <= images <= 18
    for frame in frames:
        assert frame.image is not None or "16 images were waiting" in str(frame.fault)
