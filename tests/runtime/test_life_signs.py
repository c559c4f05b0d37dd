"""The loops of a stream give signs of life while they judge and wait, and none while they hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from fakes.clock import FakeClock
from fakes.live_camera import WAIT_S, Hang, Scripted

from flawline.cameras import Camera, CameraError, Frame
from flawline.cameras.grabbed import EndOfStream
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.outputs import Judgement, Output
from flawline.runtime.service_manager import ALIVE, READY, ServiceManager
from flawline.runtime.station.life_signs import LifeSigns
from flawline.runtime.station.pipeline import run_stream
from flawline.runtime.station.several_cameras import Station, StationSettings
from flawline.runtime.station.tally import Tally

PERIOD_S = 0.02


class Recorder(ServiceManager):
    """Counts the signs of life."""

    def __init__(self) -> None:
        super().__init__("@nothing", 4 * PERIOD_S)
        self.lines: list[str] = []

    def send(self, *lines: str) -> bool:
        self.lines += lines
        return True

    @property
    def signs(self) -> int:
        return self.lines.count(ALIVE)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Gated(Camera):
    """Gives a frame for each `release`, until it is stopped."""

    def __init__(self, name: str = "gated") -> None:
        super().__init__()
        self.name = name
        self.source = name
        self._frames = threading.Semaphore(0)

    def release(self) -> None:
        self._frames.release()

    def stop(self) -> None:
        super().stop()
        self._frames.release()

    def __iter__(self) -> Iterator[Frame]:
        for index in range(1000):
            self._frames.acquire()
            if self._stopped:
                return
            yield Frame("gated", index, np.full((64, 64, 3), 10, np.uint8))


class Blocking(Output):
    """Writes when it may."""

    def __init__(self) -> None:
        self.may_write = threading.Event()
        self.may_write.set()
        self.written = 0

    def write(self, judgement: Judgement) -> None:
        assert self.may_write.wait(WAIT_S)
        self.written += 1

    def finish(self, summary: Mapping[str, Any]) -> None:
        pass


class Running:
    """A stream in a thread of its own, of one camera or of two."""

    def __init__(self, bundle: Bundle, cameras: list[Camera]) -> None:
        self.manager = Recorder()
        self.life = LifeSigns(self.manager)
        self.output = Blocking()
        self.detector = Detector(bundle, "onnxruntime")
        self.cameras = cameras
        self.stop = threading.Event()
        self.station: Station | None = None
        self.error: CameraError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._judge()
        except CameraError as error:
            self.error = error

    def ended(self) -> list[str]:
        """Return the names of the cameras that give no more frames."""
        readers = [] if self.station is None else self.station.readers
        return [reader.name for reader in readers if reader.ended]

    def _judge(self) -> None:
        tally = Tally()
        outputs = [self.output]
        if len(self.cameras) == 1:
            (camera,) = self.cameras
            run_stream(camera, self.detector, outputs, None, self.stop, tally, life=self.life)
        else:
            self.station = Station(self.cameras, StationSettings())
            self.station.run(self.detector, outputs, None, tally, self.life)

    def end(self) -> None:
        self.output.may_write.set()
        self.stop.set()
        for camera in self.cameras:
            camera.stop()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        self.detector.close()
        if self.error is not None:
            raise self.error


@pytest.fixture(params=[1, 2], ids=["one camera", "two cameras"])
def cameras(request: pytest.FixtureRequest) -> list[Gated]:
    return [Gated(f"gated{number}") for number in range(request.param)]


@pytest.fixture
def running(bundle: Bundle, cameras: list[Gated]) -> Iterator[Running]:
    running = Running(bundle, list(cameras))
    yield running
    running.end()


def test_signs_are_given_while_no_frame_comes_and_between_frames(
    running: Running, cameras: list[Gated]
) -> None:
    wait_until(lambda: running.manager.signs >= 3)
    assert running.manager.lines[0] == READY
    for camera in cameras:
        camera.release()
    wait_until(lambda: running.output.written == len(cameras))
    seen = running.manager.signs
    wait_until(lambda: running.manager.signs >= seen + 3)
    assert any(
        line == f"STATUS=runs; {len(cameras)} parts, 0 anomalous, 0 unjudged"
        for line in running.manager.lines
    )


def test_no_sign_is_given_while_the_engine_computes_for_ever(
    running: Running, cameras: list[Gated], monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = threading.Event()
    hang = threading.Event()
    judge = running.detector.judge_prepared

    def hanging(*arguments: Any) -> Any:
        entered.set()
        assert hang.wait(WAIT_S)
        return judge(*arguments)

    monkeypatch.setattr(running.detector, "judge_prepared", hanging)
    cameras[0].release()
    assert entered.wait(WAIT_S)
    seen = running.manager.signs
    time.sleep(5 * PERIOD_S)
    assert running.manager.signs == seen
    hang.set()
    wait_until(lambda: running.manager.signs > seen)


def test_no_sign_is_given_while_an_output_hangs(
    running: Running, cameras: list[Gated], capsys: pytest.CaptureFixture[str]
) -> None:
    running.output.may_write.clear()
    cameras[0].release()
    wait_until(lambda: "STATUS=the outputs hangs" in running.manager.lines)
    seen = running.manager.signs
    time.sleep(5 * PERIOD_S)
    assert running.manager.signs == seen
    running.output.may_write.set()
    wait_until(lambda: running.manager.signs > seen)
    assert "warning: the outputs has made no progress" in capsys.readouterr().err


@pytest.mark.parametrize("end", [EndOfStream(), CameraError("camera scripted://: gone")])
def test_a_camera_that_ended_or_is_lost_does_not_count_as_one_that_hangs(
    end: Exception, bundle: Bundle
) -> None:
    scripted = Scripted([1, end], restarts=0)
    running = Running(bundle, [Gated("good"), scripted])
    wait_until(lambda: running.ended() != [])
    scripted.clock.sleep(1000.0)
    seen = running.manager.signs
    wait_until(lambda: running.manager.signs >= seen + 3)
    if isinstance(end, CameraError):
        with pytest.raises(CameraError, match="given up after 0 attempts"):
            running.end()
    else:
        running.end()


# What a live camera says about its consumer.


def test_a_live_camera_says_whether_a_frame_waits_for_its_consumer() -> None:
    clock = FakeClock()
    hang = Hang()
    camera = Scripted([1, 2, hang], clock=clock, every_frame=True, stall=50.0, max_age=50.0)
    assert camera.pending() is None
    frames = iter(camera)
    next(frames)
    wait_until(lambda: camera.captured == 2)
    first = camera.pending()
    assert first is not None
    assert camera.pending() == first
    next(frames)
    assert camera.pending() is None
    # It should have been opened again by then, which the consumer's thread does.
    clock.advance(51.0)
    assert camera.pending() not in (None, first)
    hang.release()
    camera.close()


def test_a_live_camera_that_ended_does_not_wait() -> None:
    camera = Scripted([1, EndOfStream()])
    assert len(list(camera)) == 1
    assert camera.pending() is None
    camera.close()
