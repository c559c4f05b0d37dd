"""The pipeline: camera, engine and outputs work at the same time, and no frame is lost."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.live_camera import WAIT_S, Scripted

from flawline.cameras import Camera, Frame
from flawline.cameras.grabbed import EndOfStream
from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.outputs import Judgement, Output, OutputError
from flawline.runtime.stage_times import STAGES, StageTimes, stage_table
from flawline.runtime.station import reporter
from flawline.runtime.station.pipeline import run_stream
from flawline.runtime.station.several_cameras import Station, StationSettings
from flawline.runtime.station.tally import Tally


class Line(Camera):
    """Frames of these grey values; None is a frame without an image."""

    def __init__(self, *values: int | None) -> None:
        super().__init__()
        self.values = values

    def __iter__(self) -> Iterator[Frame]:
        for index, value in enumerate(self.values):
            if self._stopped:
                return
            image = None if value is None else np.full((60, 80, 3), value, np.uint8)
            yield Frame("line", index, image, "torn" if image is None else None)


class Remembering(Output):
    """Calls `on_write`, and then notes the score and the largest value of the map."""

    def __init__(self, on_write: Callable[[Judgement], None]) -> None:
        self.on_write = on_write
        self.seen: list[tuple[int, str, float | None]] = []
        self.summary: Mapping[str, Any] = {}

    def write(self, judgement: Judgement) -> None:
        self.on_write(judgement)
        peak = None
        if judgement.verdict.anomaly_map is not None:
            peak = float(judgement.verdict.anomaly_map.max())
        self.seen.append((judgement.frame.index, judgement.verdict.name, peak))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.summary = summary


class Impatient(Remembering):
    """Notes in which calls of `write` it may not wait for a peer."""

    def __init__(self, on_write: Callable[[Judgement], None]) -> None:
        super().__init__(on_write)
        self.may_wait = True
        self.waits: list[bool] = []

    def stop_waiting(self) -> None:
        self.may_wait = False

    def write(self, judgement: Judgement) -> None:
        self.waits.append(self.may_wait)
        super().write(judgement)


@pytest.fixture
def detector(bundle: Bundle) -> Iterator[Detector]:
    with Detector(bundle, "onnxruntime") as detector:
        yield detector


class CountedCalls:
    """Counts the calls of the engine of a detector."""

    def __init__(self, detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.changed = threading.Condition()
        judge = detector.judge_prepared

        def counted(items: Any) -> Any:
            verdicts = judge(items)
            with self.changed:
                self.count += 1
                self.changed.notify_all()
            return verdicts

        monkeypatch.setattr(detector, "judge_prepared", counted)

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.count >= count, WAIT_S)


@pytest.mark.parametrize("several", [False, True])
def test_the_engine_continues_while_an_output_hangs(
    several: bool, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = CountedCalls(detector, monkeypatch)
    # The first delivery does not return before all frames were judged.
    output = Remembering(lambda judgement: calls.wait_for(6 + several))
    camera = Line(10, 20, None, 120, 30, 40)
    if several:
        Station([camera, Line(50)], StationSettings()).run(detector, [output], None, Tally())
        output.seen = [seen for seen in output.seen if seen[2] != 50]
    else:
        run_stream(camera, detector, [output], None, threading.Event(), Tally())
    assert output.seen == [
        (0, "good", 10),
        (1, "good", 20),
        (2, "unjudged", None),
        (3, "anomalous", 120),
        (4, "good", 30),
        (5, "good", 40),
    ]
    assert output.summary["frames"] == 6 + several


def test_the_engine_waits_for_an_output_only_where_memory_runs_out(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter, "CAPACITY", 1)
    calls = CountedCalls(detector, monkeypatch)
    ahead = []

    def slowly(judgement: Judgement) -> None:
        # The next one waits in the queue, and the engine with the one after that.
        calls.wait_for(min(10, judgement.frame.index + 2))
        ahead.append(calls.count - judgement.frame.index)

    output = Remembering(slowly)
    run_stream(Line(*range(10)), detector, [output], None, threading.Event(), Tally())
    assert [index for index, _, _ in output.seen] == list(range(10))
    assert max(ahead) <= 3


def test_a_map_that_an_output_reads_late_is_that_of_its_frame(detector: Detector) -> None:
    last = threading.Event()

    class Slow(Line):
        def __iter__(self) -> Iterator[Frame]:
            yield from super().__iter__()
            last.set()

    output = Remembering(lambda judgement: last.wait(WAIT_S) and None)
    run_stream(Slow(*range(1, 90)), detector, [output], None, threading.Event(), Tally())
    assert [peak for _, _, peak in output.seen] == list(range(1, 90))


def test_the_age_of_a_frame_is_that_at_its_verdict_and_not_at_its_delivery(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = CountedCalls(detector, monkeypatch)
    camera = Scripted([1, 2, 3], every_frame=True)
    clock = camera.clock
    ages = []

    def write(judgement: Judgement) -> None:
        calls.wait_for(3)
        if not ages:
            clock.sleep(100)
        ages.append(judgement.age)

    tally = Tally()
    run_stream(camera, detector, [Remembering(write)], None, threading.Event(), tally)
    # The clock stood still until all three were judged; the last verdict may be counted after that.
    assert ages[:2] == [0, 0]
    assert tally.ages.percentiles([50])[0] == 0


@pytest.mark.parametrize("several", [False, True])
def test_a_required_output_that_fails_ends_a_stream_whose_camera_gives_no_frame(
    several: bool, detector: Detector
) -> None:
    class Quiet(Line):
        """Gives a single frame, and nothing before it is stopped."""

        def __init__(self) -> None:
            super().__init__(1)
            self.stopping = threading.Event()

        def __iter__(self) -> Iterator[Frame]:
            yield from super().__iter__()
            assert self.stopping.wait(WAIT_S)

        def stop(self) -> None:
            super().stop()
            self.stopping.set()

    def fail(_judgement: Judgement) -> None:
        raise OutputError("the line is down")

    output = Remembering(fail)

    def run() -> None:
        if several:
            station = Station([Quiet(), Quiet()], StationSettings())
            station.run(detector, [output], None, Tally())
        else:
            run_stream(Quiet(), detector, [output], None, threading.Event(), Tally())

    with pytest.raises(OutputError, match="the line is down"):
        run()
    assert output.summary["frames"] >= 1


def test_a_live_camera_drops_and_counts_while_the_engine_is_busy(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = threading.Event()
    captured = threading.Event()

    def second() -> int:
        assert judged.wait(WAIT_S)
        return 2

    def last() -> Exception:
        captured.set()
        return EndOfStream()

    camera = Scripted([1, second, 3, 4, 5, last])
    judge = detector.judge_prepared

    def slowly(items: Any) -> Any:
        judged.set()
        assert captured.wait(WAIT_S)
        return judge(items)

    monkeypatch.setattr(detector, "judge_prepared", slowly)
    output = Remembering(lambda judgement: None)
    run_stream(camera, detector, [output], None, threading.Event(), Tally())
    values = [peak for _, _, peak in output.seen]
    assert (values[0], values[-1]) == (1, 5)
    # One may have been fetched while the engine had the first one.
    assert len(values) <= 3
    assert output.summary["captured"] == 5
    assert output.summary["dropped"] == 5 - len(values)


def test_no_frame_is_lost_when_a_stop_comes_while_all_stages_are_busy(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    calls = CountedCalls(detector, monkeypatch)
    fetched = []

    class Counted(Line):
        def __iter__(self) -> Iterator[Frame]:
            for frame in super().__iter__():
                fetched.append(frame.index)
                yield frame

    def write(judgement: Judgement) -> None:
        if judgement.frame.index == 0:
            calls.wait_for(3)
            stop.set()

    output = Remembering(write)
    run_stream(Counted(*range(250)), detector, [output], None, stop, Tally())
    assert [index for index, _, _ in output.seen] == fetched
    assert output.summary["frames"] == len(fetched) < 250


def test_a_profile_says_where_the_time_goes(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    camera = "synthetic://?width=64&height=48&fps=200&frames=20&every_frame=1"
    flags = ["--bundle", str(bundle.path), "--engine", "onnxruntime", "--camera", camera]
    assert infer_stream.main([*flags, "--profile"]) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out.splitlines()[-1])["summary"]
    assert list(summary["profile"]) == list(STAGES)
    for times in summary["profile"].values():
        assert 0 <= times["p50_ms"] <= times["p95_ms"]
        assert times["share"] >= 0
    table = printed.err.splitlines()[-1 - len(STAGES) :]
    assert table[0].split() == ["stage", "median", "ms", "p95", "ms", "share", "of", "run"]
    assert [line.split()[0] for line in table[1:]] == list(STAGES)
    shares = [f"{times['share']:.2%}" for times in summary["profile"].values()]
    assert [line.split()[3] for line in table[1:]] == shares
    assert infer_stream.main([*flags, "--camera", camera, "--profile"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])["summary"]
    assert "engine" in summary["profile"]
    assert "profile" not in summary["cameras"]["1"]
    assert infer_stream.main(flags) == 0
    assert "profile" not in capsys.readouterr().out


def test_the_shares_of_a_profile_are_those_of_the_time_so_far() -> None:
    now = 50.0
    times = StageTimes(lambda: now)
    for seconds in (0.5, 1.0, 1.5):
        times.note("engine", seconds)
    times.note("outputs", 1.0)
    now = 60.0
    stages = times.summary()
    assert stages["engine"] == {"p50_ms": 1000.0, "p95_ms": 1450.0, "share": 0.3}
    assert stages["outputs"]["share"] == 0.1
    assert list(stages) == ["engine", "outputs"]
    assert len(stage_table(stages)) == 3


@pytest.mark.parametrize("several", [False, True])
def test_no_peer_is_waited_for_once_the_stream_was_told_to_end(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, several: bool
) -> None:
    calls = CountedCalls(detector, monkeypatch)
    stop = threading.Event()
    cameras = [Line(50, 50, 50)] + [Line()] * several
    station = Station(cameras, StationSettings())

    def end(judgement: Judgement) -> None:
        # The others are judged already, and wait for the output.
        calls.wait_for(3)
        stop.set()
        station.stop()

    output = Impatient(end)
    if several:
        station.run(detector, [output], None, Tally())
    else:
        run_stream(cameras[0], detector, [output], None, stop, Tally())
    assert output.waits == [True, False, False]


def test_a_call_of_the_engine_counts_once_in_the_profile(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    tally = Tally(profile=True)
    noted: list[str] = []
    monkeypatch.setattr(tally.stages, "note", lambda stage, seconds: noted.append(stage))
    run_stream(Line(*[50] * 6), detector, [], None, threading.Event(), tally, batch=3)
    assert noted.count("engine") == 2
    assert noted.count("prepare") == 6


class GivenBackMeanwhile(deque[Any]):
    """Gets an array of another shape after each look at one, as from another thread."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.append(np.zeros((2, 3), np.float32))
        return found


def test_a_map_of_another_shape_may_be_given_back_at_any_time() -> None:
    copies = reporter._MapCopies()
    copies._free = GivenBackMeanwhile([np.zeros((4, 5), np.float32)])
    for shape in ((4, 5), (2, 3), (4, 5)):
        anomaly_map = np.full(shape, 7, np.float32)
        copy = copies.copy_of(anomaly_map)
        np.testing.assert_array_equal(copy, anomaly_map)
        copies.give_back(copy)
