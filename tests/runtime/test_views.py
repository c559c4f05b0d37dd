"""Several exposures of one part: the worst one decides, and a missing one rejects the part."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flawline.cameras import Camera, CameraError, Frame, open_camera
from flawline.cameras.parts import Pulses
from flawline.runtime import infer_stream
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.outputs import Judgement, Output
from flawline.runtime.station.pipeline import run_stream
from flawline.runtime.station.tally import Tally
from flawline.runtime.station.views import PartViews, ViewGroups
from flawline.runtime.verdict import Verdict

pytestmark = pytest.mark.usefixtures("patient_pulses")
MAP = np.zeros((2, 2), np.float32)


def frame(part: str, view: int, grey: int | None = 1, views: int = 3) -> Frame:
    image = None
    if grey is not None:
        image = np.full((8, 8), grey, np.uint8)
    index = 10 * ord(part) + view
    fault = None if image is not None else "dark"
    return Frame("line", index, image, fault, part=part, view=view, views=views)


def judged(score: float, anomaly_map: np.ndarray = MAP) -> Verdict:
    return Verdict(score, 50.0, score > 50, anomaly_map, {"prepare": 1.0, "infer": 2.0})


UNJUDGED = Verdict(math.nan, 50.0, True, None, {}, "no image")


def add(groups: ViewGroups, part: str, *scores: float | None) -> list[Any]:
    """Add verdicts on the first views of a part; None is one that could not be judged."""
    parts = []
    for view, score in enumerate(scores):
        verdict = UNJUDGED if score is None else judged(score)
        parts.extend(groups.add(frame(part, view), verdict))
    return parts


def test_the_worst_view_is_that_which_is_farthest_above_its_own_threshold() -> None:
    views = PartViews(3)
    for number, (score, threshold, review) in enumerate(
        [(80, 100.0, None), (30, 20.0, None), (90, 100.0, 85.0)]
    ):
        anomaly_map = np.full((2, 2), score, np.float32)
        verdict = Verdict(score, threshold, score > threshold, anomaly_map, {}, None, review)
        views.add(number, frame("A", number), verdict)
    part = views.join()
    assert part.verdict.score == 30
    assert part.verdict.name == "anomalous"
    assert part.verdict.anomaly_map is not None
    assert part.verdict.anomaly_map.max() == 30
    assert [view.name for view in part.views] == ["good", "anomalous", "review"]


def test_the_worst_view_is_the_verdict_on_the_part() -> None:
    (part,) = add(ViewGroups(), "A", 10, 70, 30)
    assert part.verdict.score == 70
    assert part.verdict.name == "anomalous"
    assert part.frame.view == 1
    assert part.verdict.milliseconds == {"prepare": 3.0, "infer": 6.0}
    assert [view.score for view in part.views] == [10, 70, 30]
    assert [view.name for view in part.views] == ["good", "anomalous", "good"]


def test_the_map_of_the_worst_view_outlives_the_buffer_of_the_engine() -> None:
    groups = ViewGroups()
    buffer = np.zeros((2, 2), np.float32)
    parts = []
    for view, score in enumerate((10.0, 70.0, 30.0)):
        buffer[:] = score
        parts.extend(groups.add(frame("A", view), judged(score, buffer)))
    buffer[:] = -1
    (part,) = parts
    assert (part.verdict.anomaly_map == 70).all()


@pytest.mark.parametrize("view", [0, 1, 2])
def test_a_view_that_cannot_be_judged_makes_the_part_unjudged(view: int) -> None:
    scores: list[float | None] = [10, 70, 30]
    scores[view] = None
    (part,) = add(ViewGroups(), "A", *scores)
    assert part.verdict.name == "unjudged"
    assert part.verdict.anomalous
    assert part.verdict.reason == f"view {view + 1} of 3: no image"
    assert part.views[view].reason == "no image"
    assert part.verdict.milliseconds == {}


def test_a_view_with_an_image_is_shown_for_one_without() -> None:
    groups = ViewGroups()
    parts = groups.add(frame("A", 0), judged(10))
    parts += groups.add(frame("A", 1), judged(70))
    parts += groups.add(frame("A", 2, grey=None), UNJUDGED)
    (part,) = parts
    assert part.verdict.reason == "view 3 of 3: no image"
    assert part.frame.view == 1
    assert part.frame.image is not None
    dark = []
    for view in range(3):
        dark += groups.add(frame("B", view, grey=None), UNJUDGED)
    assert dark[0].frame.view == 0


def test_a_missing_view_makes_the_part_unjudged_and_the_next_part_is_its_own() -> None:
    groups = ViewGroups()
    assert add(groups, "A", 10, 20) == []
    first, second = add(groups, "B", 10, 20, 30)
    assert first.frame.part == "A"
    assert first.verdict.reason == "only 2 of the part's 3 views came"
    assert first.verdict.anomalous
    assert second.verdict.name == "good"
    assert groups.flush() == []


def test_views_at_the_end_of_the_stream_are_an_unjudged_part() -> None:
    groups = ViewGroups()
    add(groups, "A", 10)
    (part,) = groups.flush()
    assert part.verdict.reason == "only 1 of the part's 3 views came"


def test_a_frame_without_a_part_ends_the_views_before_it() -> None:
    groups = ViewGroups()
    add(groups, "A", 10)
    outage = Frame("line", 5, None, "opened again")
    first, second = groups.add(outage, UNJUDGED)
    assert first.verdict.reason == "only 1 of the part's 3 views came"
    assert second.frame is outage
    assert second.views == ()


def test_a_single_exposure_passes_as_it_is() -> None:
    verdict = judged(10)
    (part,) = ViewGroups().add(frame("A", 0, views=1), verdict)
    assert part.verdict is verdict
    assert part.views == ()


def test_pulses_count_the_views_of_a_part() -> None:
    pulses = Pulses(by_software=False, views=2)
    pulses.begin(1)
    pulses.announce("SN1")
    found = []
    for number in (1, 2, 4):
        found.extend((pulse.name, pulse.view, pulse.views) for pulse in pulses.arrive(number))
    assert found == [("SN1", 0, 2), ("SN1", 1, 2), ("2", 0, 2), ("2", 1, 2)]


def test_the_line_begins_with_a_new_part_when_the_camera_is_opened_again() -> None:
    pulses = Pulses(by_software=False, views=2)
    pulses.begin(1)
    pulses.arrive(1)
    pulses.begin(1)
    (pulse,) = pulses.arrive(1)
    assert (pulse.name, pulse.view) == ("2", 0)


def test_software_pulses_keep_their_views_when_the_camera_is_opened_again() -> None:
    pulses = Pulses(by_software=True, views=2)
    pulses.begin(1)
    pulses.send("SN1", 0.0)
    pulses.begin(1)
    second = pulses.send("SN1", 0.0)
    assert (second.name, second.view) == ("SN1", 1)


def test_every_part_of_the_line_is_one_line_with_all_scores(bundle: Bundle, tmp_path: Path) -> None:
    names = tmp_path / "parts.txt"
    names.write_text("A\nB\nC\n")
    lines = tmp_path / "lines.jsonl"
    camera = "synthetic://?width=64&height=48&trigger=software&views=3&queue=99&answer_s=20&faults=4:damaged"
    flags = ["--bundle", str(bundle.path), "--camera", camera, "--parts", str(names)]
    assert infer_stream.main([*flags, "--output", f"jsonl:{lines}"]) == 0
    *records, end = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [record["part"] for record in records] == ["A", "B", "C"]
    for record in records:
        assert [view["view"] for view in record["views"]] == [0, 1, 2]
    first, second, _ = records
    scores = [view["score"] for view in first["views"]]
    assert first["score"] == max(scores)
    assert second["verdict"] == "unjudged"
    assert second["reason"] == "view 2 of 3: the image is incomplete, as scripted"
    assert second["views"][1]["reason"] == "the image is incomplete, as scripted"
    assert "reason" not in second["views"][0]
    assert end["summary"]["frames"] == 3
    assert end["summary"]["unjudged"] == 1


class Views(Camera):
    """Gives three views of each of several parts."""

    def __iter__(self) -> Iterator[Frame]:
        for part in "ABCD":
            for view in range(3):
                yield frame(part, view, grey=10)


class Counted(Output):
    """Remembers the parts."""

    def __init__(self) -> None:
        self.parts: list[str | None] = []

    def write(self, judgement: Judgement) -> None:
        assert judgement.verdict.reason is None
        self.parts.append(judgement.frame.part)


def test_a_limit_of_frames_cuts_no_part_in_two(bundle: Bundle) -> None:
    output = Counted()
    with Detector(bundle, "onnxruntime") as detector:
        run_stream(Views(), detector, [output], 2, threading.Event(), Tally())
    assert output.parts == ["A", "B"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("views=3", "views needs a trigger, such as trigger=line1"),
        ("trigger=line1&views=0", "views must be from 1 to 100"),
    ],
)
def test_wrong_views_are_one_line(options: str, message: str) -> None:
    with pytest.raises(CameraError, match=message):
        open_camera(f"synthetic://?{options}")
