"""The loop of an inspection without hardware: counts, sizes, ends and outputs that fail."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from fakes.clock import FakeClock

from flawline.cameras import Camera, CameraError, Frame, events
from flawline.cameras.events import CameraEvent
from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import Verbosity
from flawline.runtime.detector import Detector
from flawline.runtime.outputs import Judgement, Output, OutputError, open_output
from flawline.runtime.outputs.jsonl import record
from flawline.runtime.recent_values import RecentValues
from flawline.runtime.station.notices import FrameNotices
from flawline.runtime.station.pipeline import run_stream
from flawline.runtime.station.tally import Tally
from flawline.runtime.verdict import Verdict
from flawline.uris import quote_path

WAIT_S = 30


class Listed(Camera):
    """Gives the images or frames of a list; an exception in it is raised."""

    def __init__(self, *items: Any) -> None:
        super().__init__()
        self.items = items

    def __iter__(self) -> Iterator[Frame]:
        for index, item in enumerate(self.items):
            if isinstance(item, Exception):
                raise item
            yield item if isinstance(item, Frame) else Frame("list", index, item)


class Recorded(Output):
    """Remembers what it gets; fails where it is asked to."""

    def __init__(self, fails: bool = False) -> None:
        self.scores: list[float] = []
        self.summaries: list[Mapping[str, Any]] = []
        self.fails = fails
        self.fails_at_the_end = False
        self.fails_to_close = False

    def write(self, judgement: Judgement) -> None:
        self.scores.append(judgement.verdict.score)
        if self.fails:
            raise OutputError("the line is down")

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.summaries.append(summary)
        if self.fails_at_the_end:
            raise OutputError("the summary is lost")

    def close(self) -> None:
        if self.fails_to_close:
            raise OutputError("the end is lost")


class Optional(Recorded):
    required: ClassVar[bool] = False


@pytest.fixture
def detector(bundle: Bundle) -> Iterator[Detector]:
    with Detector(bundle, "onnxruntime") as detector:
        yield detector


def grey(value: int) -> np.ndarray:
    return np.full((8, 8), value, np.uint8)


def run(
    camera: Camera,
    detector: Detector,
    *outputs: Output,
    max_frames: int | None = None,
    stop: threading.Event | None = None,
) -> Tally:
    tally = Tally()
    run_stream(camera, detector, outputs, max_frames, stop or threading.Event(), tally)
    return tally


def test_every_output_gets_every_judgement_and_the_summary(detector: Detector) -> None:
    first = Recorded()
    second = Recorded()
    run(Listed(grey(1), grey(120)), detector, first, second)
    assert first.scores == second.scores == [1, 120]
    (summary,) = first.summaries
    assert summary["frames"] == 2
    assert summary["anomalous"] == 1
    assert second.summaries == [summary]


def test_an_optional_output_that_fails_is_logged_and_a_required_one_ends_the_stream(
    detector: Detector, capsys: pytest.CaptureFixture[str]
) -> None:
    camera = Listed(grey(1), grey(2))
    after = Recorded()
    run(camera, detector, Optional(fails=True), after)
    assert after.scores == [1, 2]
    assert capsys.readouterr().err.splitlines() == ["the line is down; inspection continues"]
    required = Recorded(fails=True)
    with pytest.raises(OutputError, match="the line is down"):
        run(camera, detector, required)
    assert required.scores == [1]
    assert len(required.summaries) == 1


def test_every_output_gets_the_summary_although_others_fail(
    detector: Detector, capsys: pytest.CaptureFixture[str]
) -> None:
    optional = Optional()
    required = Recorded()
    last = Recorded()
    optional.fails_at_the_end = True
    run(Listed(grey(1)), detector, optional, last)
    assert len(last.summaries) == 1
    assert capsys.readouterr().err.splitlines() == ["the summary is lost"]
    required.fails_at_the_end = True
    with pytest.raises(OutputError, match="the summary is lost"):
        run(Listed(grey(1)), detector, required, last)
    assert len(last.summaries) == 2


def test_a_failing_summary_does_not_replace_the_error_that_ends_the_stream(
    detector: Detector, capsys: pytest.CaptureFixture[str]
) -> None:
    for output in (Optional(), Recorded()):
        output.fails_at_the_end = True
        with pytest.raises(CameraError, match="lost"):
            run(Listed(grey(1), CameraError("camera lost")), detector, output)
        assert capsys.readouterr().err.splitlines() == ["the summary is lost"]


def test_closing_an_output_does_not_replace_the_error_that_ends_the_stream(
    capsys: pytest.CaptureFixture[str],
) -> None:
    optional = Optional()
    required = Recorded()
    optional.fails_to_close = True
    required.fails_to_close = True
    with pytest.raises(CameraError, match="camera lost"), optional, required:
        raise CameraError("camera lost")
    with pytest.raises(OutputError, match="the end is lost"), optional, required:
        pass
    with optional:
        pass
    assert capsys.readouterr().err.splitlines() == ["the end is lost"] * 4


def test_a_lost_camera_ends_the_stream_with_its_summary(detector: Detector) -> None:
    output = Recorded()
    with pytest.raises(CameraError, match="lost"):
        run(Listed(grey(1), CameraError("lost")), detector, output)
    assert output.summaries[0]["frames"] == 1


def test_a_stop_and_max_frames_end_the_stream(detector: Detector) -> None:
    assert run(Listed(*[grey(1)] * 5), detector, max_frames=3).frames == 3
    stop = threading.Event()
    stop.set()
    assert run(Listed(grey(1)), detector, stop=stop).frames == 0


def test_a_frame_that_was_fetched_when_the_stop_came_has_its_verdict(detector: Detector) -> None:
    stop = threading.Event()

    class Stopped(Listed):
        """The stop comes while its first frame is fetched."""

        def __iter__(self) -> Iterator[Frame]:
            stop.set()
            yield from super().__iter__()

    assert run(Stopped(grey(1), grey(2)), detector, stop=stop).frames == 1


def test_faulty_frames_count_as_unjudged_and_not_in_the_latency(detector: Detector) -> None:
    camera = Listed(grey(1), None, grey(1).astype(np.float32), grey(2).astype(np.uint16))
    camera.reconnects = 4
    camera.dropped = 7
    tally = run(camera, detector)
    summary = tally.summary(camera)
    assert len(tally.latency) == 1
    assert summary["frames"] == 4
    assert summary["anomalous"] == 0
    assert summary["unjudged"] == 3
    assert summary["reconnects"] == 4
    assert summary["dropped"] == 7


def test_unjudged_frames_are_not_in_the_frames_per_second() -> None:
    now = 0.0

    def clock() -> float:
        return now

    tally = Tally(clock)
    judged = Verdict(1.0, 2.0, False, np.zeros((1, 1), np.float32), {"infer": 4.0})
    unjudged = Verdict(math.nan, 2.0, True, None, {}, "no image")
    for _ in range(10):
        now += 1.0
        assert tally.add(judged) == pytest.approx(1.0)
        for _ in range(5):
            assert tally.add(unjudged) == pytest.approx(1.0)
    summary = tally.summary(Listed())
    assert summary["fps"] == 1.0
    assert summary["frames"] == 60
    assert summary["unjudged"] == 50
    assert summary["anomalous"] == 0


def test_messages_about_unjudged_frames_are_limited(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0

    def clock() -> float:
        return now

    notices = FrameNotices(clock)
    unjudged = Verdict(math.nan, 2.0, True, None, {}, "no image")
    good = Verdict(1.0, 2.0, False, np.zeros((1, 1), np.float32))
    notices.unjudged(Frame("line", 0, grey(1)), good)
    for index in range(1, 30):
        notices.unjudged(Frame("line", index, None, "no image"), unjudged)
        now += 1.0
    assert capsys.readouterr().err.splitlines() == [
        "frame 1 of line was not judged, and its part rejected: no image",
        "frame 11 of line was not judged, and its part rejected: no image, "
        "and 9 more frames since the last such message",
        "frame 21 of line was not judged, and its part rejected: no image, "
        "and 9 more frames since the last such message",
    ]


def test_an_event_that_is_no_problem_is_left_out_by_a_quiet_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notices = FrameNotices()
    for quiet in (False, True):
        monkeypatch.setattr(Verbosity, "quiet", quiet)
        notices.event(CameraEvent(events.SETTINGS, f"settings, quiet={quiet}"))
        notices.event(CameraEvent(f"failed {quiet}", f"failed, quiet={quiet}"))
    assert capsys.readouterr().err.splitlines() == [
        "settings, quiet=False",
        "failed, quiet=False",
        "failed, quiet=True",
    ]


def test_the_part_is_in_the_line_the_file_name_and_the_message(
    bundle: Bundle, detector: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    camera = Listed(
        Frame("line", 0, grey(1), part="SN 4/7"),
        Frame("line", 1, None, "no image", part="8"),
        Frame("line", 2, grey(1)),
    )
    lines = tmp_path / "lines.jsonl"
    saved = tmp_path / "saved"
    with (
        open_output(f"jsonl:{lines}", bundle) as first,
        open_output(f"overlays:{saved}", bundle) as second,
    ):
        run(camera, detector, first, second)
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [record.get("part") for record in records] == ["SN 4/7", "8", None, None]
    assert "part" not in records[2]
    names = sorted(path.name[24:] for path in saved.iterdir())
    assert names == ["-000000-line-SN 4_7-good.png", "-000002-line-good.png"]
    message = "frame 1 of line, part 8, was not judged, and its part rejected: no image"
    assert message in capsys.readouterr().err


def test_an_empty_run_has_a_summary_without_percentiles() -> None:
    summary = Tally().summary(Listed())
    assert summary["frames"] == 0
    assert summary["p50_ms"] is None


def test_frames_per_second_are_over_the_last_frames() -> None:
    now = 0.0

    def clock() -> float:
        return now

    tally = Tally(clock)
    verdict = Verdict(1.0, 2.0, False, np.zeros((1, 1), np.float32), {"infer": 4.0})
    for _ in range(100):
        now += 0.1
        tally.add(verdict)
    for _ in range(30):
        now += 0.5
        fps = tally.add(verdict)
    assert fps == pytest.approx(2.0)
    summary = tally.summary(Listed())
    assert summary["fps"] == pytest.approx(130 / 25)
    assert summary["p99_ms"] == 4.0


def test_the_percentiles_are_over_a_bounded_window() -> None:
    values = RecentValues(size=4)
    for value in range(3):
        values.add(value)
    assert len(values) == 3
    assert list(values.percentiles([0, 50, 100])) == [0, 1, 2]
    for value in range(3, 10):
        values.add(value)
    assert len(values) == 4
    assert list(values.percentiles([0, 100])) == [6, 9]


def test_lines_may_go_into_a_file(bundle: Bundle, detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with open_output(f"jsonl:{path}", bundle) as output:
        run(Listed(grey(1), grey(2)), detector, output)
    assert len(path.read_text().splitlines()) == 3
    message = r"output jsonl: cannot be written to .* \(No such file.*; check the path, or choose"
    with pytest.raises(OutputError, match=message):
        open_output(f"jsonl:{tmp_path}/absent/lines.jsonl", bundle)


def test_a_file_of_lines_is_replaced_with_the_first_line_and_not_before(
    bundle: Bundle, detector: Detector, tmp_path: Path
) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("of an earlier run\n")
    open_output(f"jsonl:{path}", bundle).close()
    assert path.read_text() == "of an earlier run\n"
    with open_output(f"jsonl:{path}", bundle) as output:
        run(Listed(grey(1)), detector, output)
    assert "earlier" not in path.read_text()
    assert len(path.read_text().splitlines()) == 2


def test_a_target_may_hold_a_question_mark(
    bundle: Bundle, detector: Detector, tmp_path: Path
) -> None:
    path = tmp_path / "good or bad? 50%.jsonl"
    with open_output(f"jsonl:{quote_path(path)}", bundle) as output:
        run(Listed(grey(1)), detector, output)
    assert len(path.read_text().splitlines()) == 2
    with pytest.raises(OutputError, match=r"option 'mark\.jsonl' is unknown"):
        open_output(f"jsonl:{tmp_path}/question?mark.jsonl", bundle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smoke:signal", "'smoke' is unknown; known: jsonl, csv, "),
        ("jsonl:lines?colour=red", "option 'colour' is unknown"),
        ("jsonl:lines?a=1&a=2", "option 'a' is given twice; leave one of them out"),
        ("overlays", "needs a folder; write overlays:DIR"),
    ],
)
def test_a_wrong_output_is_one_line(text: str, message: str, bundle: Bundle) -> None:
    with pytest.raises(OutputError, match=message):
        open_output(text, bundle)


def test_outputs_of_the_command_line(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "lines.jsonl"
    overlays = tmp_path / "overlays"
    flags = ["--bundle", str(bundle.path), "--camera", "synthetic://?frames=2&width=64&height=64"]
    outputs = ["--output", f"jsonl:{lines}", "--output", f"overlays:{overlays}"]
    assert infer_stream.main([*flags, *outputs]) == 0
    assert not capsys.readouterr().out
    content = lines.read_text().splitlines()
    assert "summary" in content[-1]
    assert len(list(overlays.iterdir())) == len(content) - 1 > 0


def test_save_takes_any_folder_name(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "what? 100%25"
    camera = "synthetic://?frames=2&width=64&height=64"
    flags = ["--bundle", str(bundle.path), "--camera", camera, "--save", str(folder)]
    assert infer_stream.main(flags) == 0
    assert list(folder.iterdir())


@pytest.mark.parametrize(
    "wrong", [["--camera", "/nowhere"], ["--camera", "synthetic://", "--engine", "abacus"]]
)
def test_a_start_that_fails_keeps_the_results_of_the_last_run(
    wrong: list[str], bundle: Bundle, tmp_path: Path
) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text("of an earlier run\n")
    flags = ["--bundle", str(bundle.path), "--output", f"jsonl:{lines}"]
    assert infer_stream.main([*flags, *wrong]) == 2
    assert lines.read_text() == "of an earlier run\n"


def test_the_camera_is_checked_before_the_engine_and_the_outputs_are_opened(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def unexpected(*_: object) -> None:
        raise AssertionError("minutes of compiling would be lost")

    monkeypatch.setattr(infer_stream, "Detector", unexpected)
    saved = tmp_path / "saved"
    flags = ["--bundle", str(bundle.path), "--camera", "/nowhere", "--save", str(saved)]
    assert infer_stream.main(flags) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert not saved.exists()


@pytest.mark.parametrize(
    "source",
    [
        "x" * 240,
        "检" * 85,
        'a:b*c?d"e<f>g|h\\\\i\n\x7f',
        "nicht-\udcfc-utf8",
        "",
        "trailing. ",
    ],
)
def test_the_name_of_an_overlay_is_valid_on_every_file_system(
    source: str, bundle: Bundle, detector: Detector, tmp_path: Path
) -> None:
    frame = Frame(source, 7, grey(1))
    with open_output(f"overlays:{tmp_path / 'out'}", bundle) as output:
        output.write(Judgement(frame, detector.judge(frame), 1.0))
    (path,) = (tmp_path / "out").iterdir()
    assert len(path.name.encode()) <= 143
    assert not set(path.name) & set('<>:"/\\\\|?*\n\x7f')
    assert path.name.endswith("-good.png")


class Reported(Recorded):
    """Sets an event when it gets a verdict."""

    def __init__(self) -> None:
        super().__init__()
        self.event = threading.Event()

    def write(self, judgement: Judgement) -> None:
        super().write(judgement)
        self.event.set()


class LiveList(Listed):
    """A live camera of which every frame is 20 ms old when its verdict is there.

    It gives a frame after the verdict on the one before, which sets `reported`.
    """

    live: ClassVar[bool] = True

    def __init__(self, *items: Any, reported: threading.Event) -> None:
        super().__init__(*items)
        self.reported = reported

    def __iter__(self) -> Iterator[Frame]:
        self.clock = FakeClock()
        for frame in super().__iter__():
            assert frame.index == 0 or self.reported.wait(WAIT_S)
            self.reported.clear()
            self.dropped += 3
            self.on_event(CameraEvent("stale", f"a frame of {frame.index} was left out"))
            yield replace(frame, captured_mono=self.clock.monotonic() - 0.02)

    def counts(self) -> dict[str, int]:
        return {"captured": 9, **super().counts(), "stale": 2}


def test_age_drops_and_counters_of_a_live_camera_are_in_the_lines_and_the_summary(
    detector: Detector, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_output(f"jsonl:{tmp_path}/lines", bundle) as output:
        last = Reported()
        run(LiveList(grey(1), grey(2), reported=last.event), detector, output, last)
        run(Listed(grey(1)), detector, output)
    *lines, of_file, _ = map(json.loads, (tmp_path / "lines").read_text().splitlines())
    first, second, end = lines
    assert first["age_ms"] == second["age_ms"] == 20
    assert first["dropped"] == 3
    assert second["dropped"] == 6
    assert "age_ms" not in of_file
    summary = end["summary"]
    assert summary["p95_age_ms"] == 20
    assert {name: summary[name] for name in ("captured", "dropped", "stale", "reconnects")} == {
        "captured": 9,
        "dropped": 6,
        "stale": 2,
        "reconnects": 0,
    }
    # Messages of a kind are limited.
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if not line.startswith("note: ")] == [
        "a frame of 0 was left out"
    ]


def test_a_live_camera_that_states_no_time_has_no_age(detector: Detector, bundle: Bundle) -> None:
    judgement = Judgement(Frame("line", 0, grey(1)), detector(grey(1)), 1.0, live=True)
    assert record(judgement)["age_ms"] is None
