"""Several cameras that see the same parts: one verdict for each, and no view of another part."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from flawline.cameras import Camera, CameraError, Frame, open_camera
from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle
from flawline.runtime.station import same_part
from flawline.runtime.station.notices import FrameNotices
from flawline.runtime.station.same_part import SameParts
from flawline.runtime.station.several_cameras import Station, StationSettings
from flawline.runtime.station.tally import Tally
from flawline.runtime.station.views import PartVerdict
from flawline.runtime.verdict import Verdict

pytestmark = pytest.mark.usefixtures("patient_pulses")
SYNTHETIC = "synthetic://?width=64&height=48&fps=200"
MAP = np.zeros((2, 2), np.float32)


class Files(Camera):
    """A file source."""

    def __iter__(self) -> Iterator[Frame]:
        yield from ()


@dataclass
class FakeReader:
    """A camera and what has become of it."""

    name: str
    camera: Camera
    ended: bool = False
    lost: bool = False
    tally: Tally = field(default_factory=Tally)
    notices: FrameNotices = field(default_factory=FrameNotices)


class Table:
    """Two cameras, left and right, whose frames are added by hand."""

    def __init__(self, triggered: bool = True, wait_s: float = 2.0, views: int = 1) -> None:
        self.readers: dict[str, FakeReader] = {}
        for name in ("left", "right"):
            camera: Camera = Files()
            if triggered:
                camera = open_camera("synthetic://?trigger=line1")
            self.readers[name] = FakeReader(name, camera)
        self.readers["right"].camera.views = views
        self.parts = SameParts(list(self.readers.values()), wait_s)  # type: ignore[arg-type]
        self.now = 50.0
        self._index = 0

    def add(
        self, name: str, part: str | None, score: float | None = 10.0, view: int = 0, index: int = 0
    ) -> list[PartVerdict]:
        """Add a frame; a score of None is a frame that could not be judged."""
        reader = self.readers[name]
        verdict = Verdict(math.nan, 50.0, True, None, {}, "torn")
        image = None
        if score is not None:
            verdict = Verdict(score, 50.0, score > 50, MAP, {"prepare": 1.0, "infer": 2.0})
            image = np.zeros((8, 8), np.uint8)
        frame = Frame(name, index, image, "torn", part=part, view=view, views=reader.camera.views)
        if image is not None:
            frame = Frame(name, index, image, part=part, view=view, views=reader.camera.views)
        return self.parts.add(reader, frame, verdict, self.now)  # type: ignore[arg-type]

    def settle(self) -> list[PartVerdict]:
        return self.parts.settle(self.now)


def facts(parts: list[PartVerdict]) -> list[tuple[str | None, str, str | None]]:
    """Part, verdict and reason of each."""
    return [(part.frame.part, part.verdict.name, part.verdict.reason) for part in parts]


def test_the_worst_view_of_all_cameras_is_the_verdict_on_the_part() -> None:
    table = Table()
    assert table.add("left", "1", 20) == []
    (part,) = table.add("right", "1", 70)
    assert part.verdict.score == 70
    assert part.verdict.name == "anomalous"
    assert part.camera == "right"
    assert part.verdict.milliseconds == {"prepare": 2.0, "infer": 4.0}
    assert [(view.camera, view.view, view.score) for view in part.views] == [
        ("left", 0, 20),
        ("right", 1, 70),
    ]
    assert table.parts.deadline() is None
    assert table.readers["left"].tally.frames == table.readers["right"].tally.frames == 1


def test_the_times_of_a_batch_count_once_for_its_part() -> None:
    table = Table()
    times = {"prepare": 1.0, "infer": 8.0}
    verdict = Verdict(10.0, 50.0, False, MAP, times)
    found = []
    for name in ("left", "right"):
        frame = Frame(name, 0, np.zeros((8, 8), np.uint8), part="1")
        reader: Any = table.readers[name]
        found.extend(table.parts.add(reader, frame, verdict, 50.0))
    assert found[0].verdict.milliseconds == times


def test_a_view_that_cannot_be_judged_rejects_the_part_and_names_its_camera() -> None:
    table = Table()
    table.add("left", "1", 20)
    assert facts(table.add("right", "1", None)) == [("1", "unjudged", "camera right: torn")]


def test_a_number_that_one_camera_does_not_give_shifts_nothing() -> None:
    table = Table()
    for part in ("1", "2", "3"):
        assert table.add("left", part) == []
    assert facts(table.add("right", "1")) == [("1", "good", None)]
    missing = ("2", "unjudged", "camera right gave no view of this part")
    assert facts(table.add("right", "3")) == [missing, ("3", "good", None)]
    # The other camera may be the first one to give a part.
    assert table.add("right", "4") == []
    assert table.add("right", "5") == []
    missing = ("4", "unjudged", "camera left gave no view of this part")
    assert facts(table.add("left", "5")) == [missing, ("5", "good", None)]
    assert table.parts.flush() == []


def test_a_camera_that_sees_the_parts_later_may_be_several_behind() -> None:
    table = Table()
    for number in range(1, 6):
        assert table.add("left", str(number)) == []
    for number in range(1, 6):
        assert facts(table.add("right", str(number))) == [(str(number), "good", None)]


def test_a_name_may_come_again() -> None:
    table = Table()
    for _ in range(2):
        table.add("left", "SN7")
    assert facts(table.add("right", "SN7")) == [("SN7", "good", None)]
    assert facts(table.add("right", "SN7")) == [("SN7", "good", None)]


def test_a_view_that_does_not_come_in_time_rejects_the_part_and_is_counted_when_it_comes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = Table(wait_s=2.0)
    table.add("left", "1")
    table.now += 0.5
    table.add("left", "2")
    assert table.parts.deadline() == 52.0
    assert table.settle() == []
    table.now = 52.0
    assert facts(table.settle()) == [("1", "unjudged", "camera right gave no view within 2 s")]
    assert table.parts.deadline() == 52.5
    assert table.add("right", "1") == []
    assert table.parts.late == 1
    assert (
        "camera right: a view of part 1 came after the part was rejected" in capsys.readouterr().err
    )
    assert facts(table.add("right", "2")) == [("2", "good", None)]


def test_a_part_is_not_kept_for_a_camera_that_is_lost_or_has_ended() -> None:
    table = Table(triggered=False)
    table.add("left", None, index=0)
    assert table.settle() == []
    table.readers["right"].ended = True
    assert facts(table.settle()) == [("1", "unjudged", "camera right has no more frames")]
    table.add("left", None, index=1)
    table.readers["right"].lost = True
    assert facts(table.settle()) == [("2", "unjudged", "camera right is lost")]


def test_files_are_matched_by_their_position_however_long_they_take() -> None:
    table = Table(triggered=False)
    table.add("left", None, 10, index=0)
    table.add("left", None, 60, index=1)
    assert table.parts.deadline() is None
    table.now += 1000.0
    assert table.settle() == []
    assert facts(table.add("right", None, index=0)) == [("1", "good", None)]
    assert facts(table.add("right", None, index=1)) == [("2", "anomalous", None)]


def test_a_file_source_does_not_run_far_ahead() -> None:
    table = Table(triggered=False)
    left: Any = table.readers["left"]
    for index in range(same_part.LEAD):
        assert not table.parts.is_paused(left)
        table.add("left", None, index=index)
    assert table.parts.is_paused(left)
    right: Any = table.readers["right"]
    assert not table.parts.is_paused(right)
    table.add("right", None, index=0)
    assert not table.parts.is_paused(left)


def test_the_number_of_parts_that_wait_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_part, "MOST_WAITING", 3)
    monkeypatch.setattr(same_part, "MOST_SETTLED", 2)
    table = Table()
    found = []
    for number in range(1, 8):
        found.extend(table.add("left", str(number)))
    reason = "camera right gave no view while 3 other parts were waiting"
    assert facts(found) == [(str(number), "unjudged", reason) for number in range(1, 5)]
    assert len(table.parts._settled) == 2


def test_a_camera_may_take_several_exposures_of_each_part() -> None:
    table = Table(views=2)
    table.add("right", "A", 10, view=0)
    table.add("right", "A", 20, view=1)
    (part,) = table.add("left", "A", 15)
    assert [(view.camera, view.view) for view in part.views] == [
        ("left", 0),
        ("right", 1),
        ("right", 2),
    ]
    assert part.verdict.score == 20
    table.add("left", "B")
    table.add("right", "B", None, view=0)
    (part,) = table.add("right", "B", 20, view=1)
    assert part.verdict.reason == "camera right, view 1 of 2: torn"


def test_parts_that_wait_at_the_end_of_the_stream_are_rejected() -> None:
    table = Table()
    table.add("left", "1")
    reason = "camera right gave no view before the stream ended"
    assert facts(table.parts.flush()) == [("1", "unjudged", reason)]
    assert table.parts.flush() == []


def test_unknown_numbers_of_parts_are_not_matched() -> None:
    table = Table()
    with pytest.raises(CameraError, match="camera right was opened again, and the number of its"):
        table.add("right", None, None)


def test_names_from_outside_outlive_a_camera_that_is_opened_again() -> None:
    table = Table()
    right: Any = table.readers["right"].camera
    right.announce("SN1")
    assert facts(table.add("right", None, None)) == [(None, "unjudged", "torn")]
    table.add("right", "SN2")
    assert facts(table.add("left", "SN2")) == [("SN2", "good", None)]


@pytest.mark.parametrize(
    ("cameras", "message"),
    [
        (("synthetic://", "{folder}"), "camera 1: --same-part cannot tell which part a frame of"),
        (("{folder}", "{folder}?watch=1"), "camera 2: --same-part cannot tell which part"),
        (("{folder}",), "--same-part joins the frames of several cameras; repeat --camera"),
    ],
)
def test_cameras_whose_parts_are_unknown_are_refused(
    cameras: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((8, 8), np.uint8))
    opened = [open_camera(uri.format(folder=tmp_path)) for uri in cameras]
    with pytest.raises(CameraError, match=message):
        Station(opened, StationSettings(same_part=True))


def stream(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, *arguments: object
) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """Run the command; return its lines, the summary and its messages."""
    flags = ["--bundle", str(bundle.path), "--same-part", *map(str, arguments)]
    assert infer_stream.main(flags) == 0
    captured = capsys.readouterr()
    *lines, end = [json.loads(line) for line in captured.out.splitlines()]
    return lines, end["summary"], captured.err


@pytest.mark.parametrize("batch", [1, 2])
def test_files_of_two_folders_are_parts_by_their_order(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, tmp_path: Path, batch: int
) -> None:
    flags: list[object] = ["--batch", batch]
    for name, values in (("a", (20, 200, 30, 60)), ("b", (40, 50, 35))):
        folder = tmp_path / name
        folder.mkdir()
        for index, value in enumerate(values):
            cv2.imwrite(str(folder / f"{index}.png"), np.full((40, 50, 3), value, np.uint8))
        flags.extend(("--camera", f"{folder}?name={name}"))
    lines, summary, err = stream(capsys, bundle, *flags)
    found = [(line["part"], line["camera"], line["score"], line["verdict"]) for line in lines]
    assert found == [
        ("1", "b", 40, "good"),
        ("2", "a", 200, "anomalous"),
        ("3", "b", 35, "good"),
        ("4", "a", None, "unjudged"),
    ]
    assert lines[0]["views"] == [
        {"view": 0, "index": 0, "score": 20, "verdict": "good", "camera": "a"},
        {"view": 1, "index": 0, "score": 40, "verdict": "good", "camera": "b"},
    ]
    assert lines[3]["reason"] == "camera b has no more frames"
    # The view of camera a was judged.
    assert "part 4 was not judged, and is rejected: camera b has no more frames\n" in err
    assert "frame 3" not in err
    assert summary["frames"] == 4
    assert summary["late_views"] == 0
    assert summary["cameras"]["a"]["frames"] == 4
    assert "the numbers of frames differ (4 of camera a, 3 of camera b)" in err


def test_a_quiet_process_warns_of_different_numbers_of_files(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, tmp_path: Path
) -> None:
    flags = ["--quiet"]
    for name, count in (("a", 2), ("b", 1)):
        (tmp_path / name).mkdir()
        for index in range(count):
            cv2.imwrite(str(tmp_path / name / f"{index}.png"), np.zeros((40, 50, 3), np.uint8))
        flags += ["--camera", str(tmp_path / name)]
    _, _, err = stream(capsys, bundle, *flags)
    assert "the numbers of frames differ (2 of camera 1, 1 of camera 2)" in err
    assert "camera 1 is" not in err


def test_pulses_of_a_line_keep_their_places_on_every_camera(
    capsys: pytest.CaptureFixture[str], bundle: Bundle
) -> None:
    line = f"{SYNTHETIC}&trigger=line1&frames=6&queue=100&name="
    flags = ["--camera", f"{line}left&faults=1:damaged,3:missing", "--camera", f"{line}right"]
    lines, _, _ = stream(capsys, bundle, *flags, "--part-wait", "60")
    assert [line["part"] for line in lines] == ["1", "2", "3", "4", "5", "6"]
    rejected = {line["part"]: line["reason"] for line in lines if line["verdict"] == "unjudged"}
    assert rejected == {
        "2": "camera left: the image is incomplete, as scripted",
        "4": "camera left: the camera's image of this part was lost on the way",
    }


def test_a_line_of_parts_is_a_pulse_of_every_camera(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, tmp_path: Path
) -> None:
    names = tmp_path / "parts.txt"
    names.write_text("A\nB\nC\n")
    camera = f"{SYNTHETIC}&trigger=software&queue=99&answer_s=20"
    flags = ["--camera", f"{camera}&name=top", "--camera", f"{camera}&views=2&name=side"]
    lines, summary, _ = stream(capsys, bundle, *flags, "--parts", names, "--part-wait", "60")
    assert [line["part"] for line in lines] == ["A", "B", "C"]
    for line in lines:
        assert [view["camera"] for view in line["views"]] == ["top", "side", "side"]
        assert [view["verdict"] for view in line["views"]] == ["anomalous"] * 3
    assert summary["cameras"]["side"]["frames"] == 6
    assert summary["unjudged"] == 0


def test_another_view_is_saved_if_a_camera_has_no_image_of_the_part(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, tmp_path: Path
) -> None:
    line = f"{SYNTHETIC}&trigger=line1&frames=2&queue=9&name="
    flags = ["--camera", f"{line}left&faults=1:damaged", "--camera", f"{line}right"]
    saved = tmp_path / "saved"
    lines, _, _ = stream(capsys, bundle, *flags, "--part-wait", "60", "--save", saved)
    assert [line["verdict"] for line in lines] == ["anomalous", "unjudged"]
    assert lines[1]["reason"].startswith("camera left: ")
    assert lines[1]["camera"] == "right"
    (unjudged,) = saved.glob("*-unjudged.png")
    assert "-right-" in unjudged.name


def test_every_part_is_rejected_after_a_camera_is_lost(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, tmp_path: Path
) -> None:
    names = tmp_path / "parts.txt"
    names.write_text("A\nB\nC\nD\n")
    camera = f"{SYNTHETIC}&trigger=software&queue=99&answer_s=20&restarts=0"
    flags = ["--bundle", str(bundle.path), "--same-part", "--part-wait", "60"]
    flags += ["--camera", f"{camera}&name=top", "--camera", f"{camera}&name=side&faults=1:lost"]
    assert infer_stream.main([*flags, "--parts", str(names)]) == 2
    captured = capsys.readouterr()
    *lines, end = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["part"] for line in lines] == ["A", "B", "C", "D"]
    assert [line["verdict"] for line in lines] == ["anomalous"] + ["unjudged"] * 3
    assert end["summary"]["cameras"]["side"]["lost"] is True
    assert "camera side (synthetic://) is lost: " in captured.err.splitlines()[-1]


def test_every_key_of_lines_and_summary_is_documented(
    capsys: pytest.CaptureFixture[str], bundle: Bundle, tmp_path: Path
) -> None:
    camera = f"{SYNTHETIC}&trigger=line1&frames=2&queue=9&faults=1:damaged&name="
    flags = ["--camera", f"{camera}left", "--camera", f"{camera}right", "--save", tmp_path / "out"]
    lines, summary, _ = stream(capsys, bundle, *flags, "--part-wait", "60")
    keys = {*summary, *summary["cameras"]["left"]}
    for line in lines:
        keys.update(line, *line["views"])
    page = Path(__file__).parents[2] / "docs" / "formats.md"
    section = page.read_text().split("## JSON lines")[1]
    # Those of one camera are described with several cameras.
    assert sorted(key for key in keys if f"`{key}`" not in section) == ["lost"]
    assert "reason" in keys
