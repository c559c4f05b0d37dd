"""Several cameras with one engine: each has its verdicts, counts and failures."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from fakes.clock import FakeClock
from fakes.live_camera import WAIT_S, Scripted

from flawline.cameras import CAMERAS, Camera, CameraError, Frame, frame_queue, open_camera
from flawline.cameras.grabbed import CorruptFrame, EndOfStream
from flawline.cameras.triggered import TriggeredCamera
from flawline.runtime import infer_stream
from flawline.runtime.ahead import Prepared
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError
from flawline.runtime.outputs import Judgement, Output
from flawline.runtime.station.camera_reader import CameraReader
from flawline.runtime.station.several_cameras import Station, StationSettings
from flawline.runtime.station.tally import Tally

ROOT = Path(__file__).resolve().parents[2]
SYNTHETIC = "synthetic://?width=64&height=48"


def grey(value: int) -> np.ndarray:
    return np.full((8, 8), value, np.uint8)


class Listed(Camera):
    """A file source with frames of these grey values; an exception is raised."""

    def __init__(self, *items: Any, name: str | None = None) -> None:
        super().__init__()
        self.source = "list"
        self.name = name
        self.items = items

    def __iter__(self) -> Iterator[Frame]:
        for index, item in enumerate(self.items):
            if isinstance(item, Exception):
                raise item
            if self._stopped:
                return
            yield item if isinstance(item, Frame) else Frame("list", index, grey(item))


class Recorded(Output):
    """Remembers what it gets, and calls `on_write` for each judgement."""

    required: ClassVar[bool] = True

    def __init__(self, on_write: Callable[[Judgement], None] = lambda judgement: None) -> None:
        self.judgements: list[Judgement] = []
        self.summary: Mapping[str, Any] = {}
        self.cameras: list[Camera] = []
        self.on_write = on_write

    def attach(self, camera: Camera) -> None:
        self.cameras.append(camera)

    def write(self, judgement: Judgement) -> None:
        self.judgements.append(judgement)
        self.on_write(judgement)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.summary = summary

    def scores(self, camera: str) -> list[float]:
        return [found.verdict.score for found in self.judgements if found.camera == camera]


@pytest.fixture
def detector(bundle: Bundle) -> Iterator[Detector]:
    with Detector(bundle, "onnxruntime") as detector:
        yield detector


def run(
    detector: Detector,
    *cameras: Camera,
    output: Recorded | None = None,
    max_frames: int | None = None,
    **settings: Any,
) -> Recorded:
    station = Station(cameras, StationSettings(**settings))
    output = output or Recorded()
    station.run(detector, [output], max_frames, Tally())
    return output


@pytest.mark.parametrize("batch", [None, 3])
def test_every_frame_of_every_file_source_has_its_verdict(
    detector: Detector, batch: int | None
) -> None:
    cameras = [Listed(1, 2, 3), Listed(120, name="left"), Listed(10, 20)]
    output = run(detector, *cameras, batch=batch)
    assert output.cameras == cameras
    assert output.scores("1") == [1, 2, 3]
    assert output.scores("left") == [120]
    assert output.scores("3") == [10, 20]
    summary = output.summary
    assert summary["frames"] == 6
    assert summary["anomalous"] == 1
    assert summary["dropped"] == 0
    counts = {name: camera["frames"] for name, camera in summary["cameras"].items()}
    assert counts == {"1": 3, "left": 1, "3": 2}
    assert summary["cameras"]["left"]["anomalous"] == 1
    assert summary["cameras"]["left"]["source"] == "list"


def test_what_waits_is_judged_in_one_call(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    judge = detector.judge_prepared

    def noted(items: list[Prepared[Frame]]) -> Any:
        sizes.append(len(items))
        return judge(items)

    monkeypatch.setattr(detector, "judge_prepared", noted)
    # So long that both cameras surely have their frame by then.
    output = run(detector, Listed(1, 2), Listed(3, 4), batch=2, batch_wait=WAIT_S)
    assert sizes == [2, 2]
    assert output.summary["frames_per_call"] == 2
    sizes.clear()
    run(detector, Listed(1, 2), Listed(3, 4), batch_wait=WAIT_S)
    # The CPU is not faster with batches.
    assert sizes == [1, 1, 1, 1]


def test_a_live_camera_gives_its_newest_frame(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = threading.Event()
    captured = threading.Event()

    def wait_then(value: int) -> Callable[[], int]:
        def grab() -> int:
            assert seen.wait(WAIT_S)
            return value

        return grab

    def last() -> Exception:
        captured.set()
        return EndOfStream()

    camera = Scripted([1, wait_then(2), 3, 4, 5, last])

    judge = detector.judge_prepared

    def slowly(items: list[Prepared[Frame]]) -> Any:
        # The camera continues while its first frame is judged.
        if items[0].item.source == camera.source:
            seen.set()
            assert captured.wait(WAIT_S)
        return judge(items)

    monkeypatch.setattr(detector, "judge_prepared", slowly)
    output = run(detector, camera, Listed(7))
    scores = output.scores("1")
    # One of them may have been fetched while the first one was judged.
    assert (scores[0], scores[-1]) == (1, 5)
    assert len(scores) <= 3
    assert output.scores("2") == [7]
    assert output.summary["cameras"]["1"]["dropped"] == 5 - len(scores)
    assert output.summary["captured"] == 5


class Newest(Camera):
    """A live camera that always has a frame."""

    newest_only = True

    def __iter__(self) -> Iterator[Frame]:
        while not self._stopped:
            yield Frame("newest", 0, grey(7))


@pytest.fixture
def reader() -> Iterator[CameraReader]:
    """One whose clock the tests set, and whose frames take 2 s to be prepared."""
    changed = threading.Event()
    clock = FakeClock()
    reader = CameraReader("1", Newest(), changed.set, clock.monotonic)

    def prepare(frame: Frame) -> np.ndarray:
        clock.now += 2.0
        return grey(7)

    def take_at(seconds: float) -> None:
        while not reader.ready:
            assert changed.wait(WAIT_S)
            changed.clear()
        clock.now = seconds
        assert reader.take() is not None

    reader.take_at = take_at  # type: ignore[attr-defined]
    reader.start(prepare)
    yield reader
    reader.stop()
    reader.join()


def test_the_next_frame_is_prepared_just_in_time_for_the_turn_of_its_camera(
    reader: CameraReader,
) -> None:
    pauses: list[float] = []

    class Passing(queue.SimpleQueue):  # type: ignore[type-arg]
        """Notes the time instead of waiting for it."""

        def get(self, block: bool = True, timeout: float | None = None) -> None:
            assert timeout is not None
            pauses.append(timeout)
            raise queue.Empty

    reader._wanted = Passing()
    for seconds in (100.0, 110.0, 120.0, 150.0, 160.0):
        reader.take_at(seconds)  # type: ignore[attr-defined]
    # The first turn says nothing about the time until the next one.
    assert pauses[:4] == [0.0, 8.0, 8.0, 28.0]


def test_the_next_frame_is_prepared_at_once_for_a_loop_that_waits(reader: CameraReader) -> None:
    for seconds in (100.0, 1e9):
        reader.take_at(seconds)  # type: ignore[attr-defined]
    # Otherwise the next turn would be in 30 years.
    reader.want()
    reader.take_at(1e9 + 1)  # type: ignore[attr-defined]


def test_a_frame_that_became_too_old_while_it_waited_is_left_out() -> None:
    clock = FakeClock()
    changed = threading.Event()
    camera = Scripted([1], clock=clock, max_age=1.0)
    reader = CameraReader("1", camera, changed.set)
    reader.start(lambda frame: grey(1))
    while not reader.ready:
        assert changed.wait(WAIT_S)
        changed.clear()
    clock.advance(1.5)
    assert reader.take() is None
    assert (camera.captured, camera.stale) == (1, 1)
    reader.join()


def test_a_live_camera_with_every_frame_drops_none(detector: Detector) -> None:
    camera = Scripted([1, 2, 3, 4], every_frame=True)
    output = run(detector, camera, Listed(7))
    assert output.scores("1") == [1, 2, 3, 4]
    assert output.summary["dropped"] == 0


def test_frames_without_an_image_do_not_pile_up_in_a_camera() -> None:
    camera = Scripted([CorruptFrame("torn") for _ in range(50)], every_frame=True)
    reader = CameraReader("1", camera, lambda: None)
    reader.start(lambda frame: grey(0))
    # The thread ends although no one takes a frame.
    reader._thread.join(WAIT_S)
    assert not reader._thread.is_alive()
    taken = 0
    while reader.ready:
        made = reader.take()
        assert made is not None
        assert made.item.fault == "the frame is damaged: torn"
        taken += 1
    assert taken == 50
    assert reader.ended


def test_an_image_that_waits_when_the_stop_comes_counts_as_dropped() -> None:
    camera = Scripted([1, 2, 3, EndOfStream()], every_frame=True)
    waits = threading.Event()
    reader = CameraReader("1", camera, waits.set)
    reader.start(lambda frame: grey(0))
    while not (reader.ready and camera.captured == 3):
        assert waits.wait(WAIT_S)
    reader.stop()
    reader.join()
    # One was fetched, the others were still in the queue of the camera.
    assert camera.dropped == 3


def test_a_camera_that_fails_is_opened_again_and_reported_with_its_name(
    detector: Detector, capsys: pytest.CaptureFixture[str]
) -> None:
    camera = Scripted([1, CameraError("torn")], [2])
    camera.name = "left"
    output = run(detector, camera, Listed(7))
    assert output.scores("left")[-1] == 2
    assert output.summary["reconnects"] == 1
    assert "camera left: torn; it is opened again (attempt 1 of 60)" in capsys.readouterr().err


def test_a_camera_that_is_lost_does_not_end_the_others(
    detector: Detector, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = threading.Event()

    def fail() -> Exception:
        return CameraError("camera list: the cable is torn")

    class Late(Listed):
        """Continues after the other camera was lost."""

        def __iter__(self) -> Iterator[Frame]:
            for frame in super().__iter__():
                yield frame
                assert lost.wait(WAIT_S)

    broken = Listed(1, fail(), name="left")
    station = Station([broken, Late(5, 6, 7)], StationSettings())
    report = station.readers[0].report

    def noted(others: bool) -> None:
        report(others)
        if station.readers[0].lost:
            lost.set()

    station.readers[0].report = noted  # type: ignore[method-assign]
    output = Recorded()
    message = r"^camera left \(list\) is lost: the cable is torn$"
    with pytest.raises(CameraError, match=message):
        station.run(detector, [output], None, Tally())
    assert output.scores("left") == [1]
    assert output.scores("2") == [5, 6, 7]
    assert output.summary["cameras"]["left"]["lost"] is True
    assert output.summary["cameras"]["2"]["lost"] is False
    expected = "camera left (list) is lost: the cable is torn; the other cameras continue"
    assert capsys.readouterr().err.splitlines() == [expected]


def test_all_cameras_may_be_lost(detector: Detector) -> None:
    cameras = [Listed(CameraError("torn")), Scripted([CameraError("away")], restarts=0)]
    message = r"camera 1 \(list\) is lost: torn; camera 2 \(scripted://\) is lost: away"
    with pytest.raises(CameraError, match=message):
        run(detector, *cameras)


def test_an_error_that_is_not_the_cameras_ends_the_stream(detector: Detector) -> None:
    output = Recorded()
    with pytest.raises(ZeroDivisionError):
        run(detector, Listed(1, ZeroDivisionError()), Scripted([1], [2]), output=output)
    assert output.summary["frames"] >= 1


def test_an_engine_that_fails_ends_the_stream_with_its_summary(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_frames: object) -> None:
        raise EngineError("the engine is broken")

    monkeypatch.setattr(detector, "judge_prepared", fail)
    output = Recorded()
    cameras = [Listed(1, 2), Listed(3)]
    with pytest.raises(EngineError, match="is broken"):
        run(detector, *cameras, output=output)
    assert output.summary["frames"] == 0
    assert all(camera._stopped for camera in cameras)


def test_a_stop_ends_all_cameras_with_the_summary(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    cameras = [Listed(*range(1000)), Scripted([1] * 1000, clock=clock)]
    station = Station(cameras, StationSettings())
    output = Recorded()
    judge = detector.judge_prepared

    def stop_meanwhile(items: list[Prepared[Frame]]) -> Any:
        station.stop()
        return judge(items)

    monkeypatch.setattr(detector, "judge_prepared", stop_meanwhile)
    station.run(detector, [output], None, Tally())
    assert len(output.judgements) == output.summary["frames"] == 1
    assert not any(reader._thread.is_alive() for reader in station.readers)


def test_a_part_that_waits_at_a_stop_is_rejected_for_that_reason(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Idle(Listed):
        """Gives nothing until it is stopped."""

        def __init__(self) -> None:
            super().__init__()
            self.ending = threading.Event()

        def __iter__(self) -> Iterator[Frame]:
            assert self.ending.wait(WAIT_S)
            yield from ()

        def stop(self) -> None:
            self.ending.set()

    station = Station([Listed(1), Idle()], StationSettings(same_part=True))
    judge = detector.judge_prepared

    def stop_meanwhile(items: list[Prepared[Frame]]) -> Any:
        station.stop()
        for reader in station.readers:
            reader.join()
            assert reader.ended
        return judge(items)

    monkeypatch.setattr(detector, "judge_prepared", stop_meanwhile)
    output = Recorded()
    station.run(detector, [output], None, Tally())
    reasons = [found.verdict.reason for found in output.judgements]
    assert reasons == ["camera 2 gave no view before the stream ended"]


def test_a_limit_counts_the_parts_of_all_cameras(detector: Detector) -> None:
    output = run(detector, Listed(*range(99)), Listed(*range(99)), max_frames=5, batch=2)
    assert output.summary["frames"] == len(output.judgements) == 5


def test_exposures_of_a_part_stay_with_their_camera(detector: Detector) -> None:
    def exposures(*values: int) -> list[Frame]:
        frames = []
        for index, value in enumerate(values):
            part = str(1 + index // 2)
            frames.append(Frame("line", index, grey(value), part=part, view=index % 2, views=2))
        return frames

    left = Listed(*exposures(10, 20, 120, 30), name="left")
    right = Listed(*exposures(40, 30, 5), name="right")
    output = run(detector, left, right, batch=2)
    assert output.scores("left") == [20, 120]
    assert output.scores("right")[0] == 40
    last = [found for found in output.judgements if found.camera == "right"][-1]
    assert last.verdict.reason == "only 1 of the part's 2 views came"


def test_an_unfinished_part_is_reported_when_its_camera_ends(detector: Detector) -> None:
    reported = threading.Event()

    class Idle(Listed):
        """Gives nothing before the part of the other camera was reported."""

        def __iter__(self) -> Iterator[Frame]:
            assert reported.wait(WAIT_S)
            yield from super().__iter__()

    half = Frame("line", 0, grey(10), part="1", view=0, views=2)
    output = Recorded(lambda judgement: reported.set())
    run(detector, Listed(half, name="left"), Idle(5), output=output)
    assert [found.camera for found in output.judgements] == ["left", "2"]
    assert output.judgements[0].verdict.reason == "only 1 of the part's 2 views came"


def test_pulses_of_a_camera_that_is_lost_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_queue, "MOST_WAITING", 5)
    camera = open_camera(f"{SYNTHETIC}&trigger=software&restarts=0&faults=0:lost")
    assert isinstance(camera, TriggeredCamera)
    changed = threading.Event()
    reader = CameraReader("left", camera, changed.set)
    reader.start(lambda frame: grey(0))
    assert camera.wait_until_open()
    camera.pulse("A")
    while not reader.lost:
        assert changed.wait(WAIT_S)
        changed.clear()
    reader.join()
    for _ in range(20):
        # Another camera still gets the pulses of these parts, so that this must not fail.
        camera.pulse("B")
    camera.close()


def test_a_camera_without_an_address_of_its_own_is_called_as_it_was_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(CAMERAS, "toy", "toys.camera:Grey")
    opened = open_camera("toy://?frames=1&name=left")
    station = Station([opened, Listed(1)], StationSettings())
    assert station.notes() == ["camera left is toy://?frames=1&name=left", "camera 2 is list"]


def test_two_cameras_have_different_names() -> None:
    with pytest.raises(CameraError, match="two cameras have the name 2; give each its own"):
        Station([Listed(name="2"), Listed()], StationSettings())


def stream(
    capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, list[dict[str, Any]], str]:
    code = infer_stream.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two folders with images of the same names."""
    found = []
    for name, values in (("a", (20, 200, 30)), ("b", (40, 50))):
        folder = tmp_path / name
        folder.mkdir()
        for index, value in enumerate(values):
            cv2.imwrite(str(folder / f"{index}.png"), np.full((40, 50, 3), value, np.uint8))
        found.append(folder)
    return found


def test_lines_and_files_name_their_camera(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, folders: list[Path], tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    flags = ["--bundle", bundle.path, "--camera", f"{folders[0]}?name=left", "--camera", folders[1]]
    code, lines, err = stream(capsys, *flags, "--save", saved)
    assert code == 0
    assert f"camera left is {folders[0]}" in err
    assert "2 cameras, up to 1 frame in one call of the engine" in err
    *records, end = lines
    found = sorted((record["camera"], record["index"], record["score"]) for record in records)
    assert found == [("2", 0, 40), ("2", 1, 50), ("left", 0, 20), ("left", 1, 200), ("left", 2, 30)]
    names = sorted(path.name[24:] for path in saved.iterdir())
    assert names == [
        "-000000-2-0-good.png",
        "-000000-left-0-good.png",
        "-000001-2-1-good.png",
        "-000001-left-1-anomalous.png",
        "-000002-left-2-good.png",
    ]
    assert end["summary"]["cameras"].keys() == {"left", "2"}
    assert end["summary"]["saved"] == 5


def test_a_file_has_no_age_next_to_a_live_camera(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, folders: list[Path]
) -> None:
    flags = ["--bundle", bundle.path, "--camera", folders[1]]
    code, lines, _ = stream(capsys, *flags, "--camera", f"{SYNTHETIC}&frames=2&every_frame=1")
    assert code == 0
    for line in lines[:-1]:
        assert ("age_ms" in line) == ("dropped" in line) == (line["camera"] == "2")
        assert line.get("age_ms", 0.0) is not None


def test_a_file_does_not_let_a_live_camera_wait_for_the_disk(detector: Detector) -> None:
    output = run(detector, Listed(1), Scripted([2], every_frame=True))
    assert [found.can_wait for found in output.judgements] == [False, False]
    assert [found.live for found in output.judgements if found.camera == "1"] == [False]
    assert run(detector, Listed(1), Listed(2)).judgements[0].can_wait


def test_one_camera_may_have_a_name(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, folders: list[Path]
) -> None:
    flags = ["--bundle", bundle.path, "--camera", f"{folders[1]}?name=left"]
    code, (first, _, end), _ = stream(capsys, *flags)
    assert code == 0
    assert first["camera"] == "left"
    assert "cameras" not in end["summary"]


def test_a_lost_camera_is_in_the_exit_status(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, folders: list[Path]
) -> None:
    broken = f"{SYNTHETIC}&frames=50&faults=0:lost&restarts=0"
    code, lines, err = stream(
        capsys, "--bundle", bundle.path, "--camera", broken, "--camera", folders[0]
    )
    assert code == 2
    assert len(lines) == 4
    assert lines[-1]["summary"]["cameras"]["1"]["lost"] is True
    assert "camera 1 (synthetic://) is lost: failed, as scripted" in err.splitlines()[-1]


def test_images_are_saved_outside_of_every_cameras_folder(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, folders: list[Path]
) -> None:
    cameras = ["--camera", folders[0], "--camera", folders[1]]
    code, _, err = stream(capsys, "--bundle", bundle.path, *cameras, "--save", folders[1] / "saved")
    assert code == 2
    assert "is inside the camera's folder" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--camera", "b", "--streams", "2"], "--streams is for one folder or video; give a sin"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--batch-wait", "2"], "--batch-wait is for several cameras; repeat --camera"),
        (["--same-part"], "--same-part is for several cameras; repeat --camera"),
        (["--camera", "b", "--batch", "0"], "--batch must be at least 1"),
        (["--camera", "b", "--batch-wait", "nan"], "--batch-wait must be from 0 to 60000"),
        (["--camera", "b", "--batch-wait", "-1"], "--batch-wait must be from 0 to 60000"),
        (["--camera", "b", "--part-wait", "1"], "--part-wait needs --same-part"),
        (
            ["--camera", "b", "--same-part", "--part-wait", "0"],
            "--part-wait must be above 0 and at most 86400",
        ),
        (
            ["--camera", "b", "--same-part", "--part-wait", "inf"],
            "--part-wait must be above 0 and at most 86400",
        ),
        (["--camera", "b", "--parts", "-"], "--parts with several cameras needs --same-part"),
    ],
)
def test_wrong_flags_are_one_line(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        infer_stream.main(["--bundle", "b", "--camera", "a", *flags])
    assert message in capsys.readouterr().err


def test_waiting_for_a_batch_of_one_is_said_to_have_no_effect(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, folders: list[Path]
) -> None:
    cameras = ["--camera", folders[0], "--camera", folders[1]]
    code, _, err = stream(capsys, "--bundle", bundle.path, *cameras, "--batch-wait", "5")
    assert code == 0
    assert "--batch-wait has no effect with one frame in a call; add --batch N" in err


def test_a_signal_ends_all_cameras_with_the_summary(bundle: Bundle, tmp_path: Path) -> None:
    camera = "synthetic://?fps=100&width=64&height=48"
    script = ROOT / "runtime" / "infer_stream.py"
    command = [sys.executable, str(script), "--bundle", str(bundle.path)]
    command += ["--camera", camera, "--camera", f"{camera}&every_frame=1"]
    command += ["--camera", f"{camera}&trigger=line1"]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "score" in json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["summary"]["cameras"].keys() == {"1", "2", "3"}
    assert "Traceback" not in err
