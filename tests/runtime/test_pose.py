"""The pose that a fixture found is in the verdict, the JSON line and the CSV row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import write_tiny_bundle
from moved_part import HEIGHT, REGION, WIDTH, draw_part

from flawline.cameras import Frame
from flawline.runtime.ahead import Prepared
from flawline.runtime.bundle import Bundle
from flawline.runtime.detector import Detector
from flawline.runtime.outputs import Judgement, open_output
from flawline.runtime.outputs.jsonl import record
from flawline.runtime.throughput import judge_in_flight
from flawline.runtime.verdict import Verdict
from flawline.train.data.reference_picture import fixture_of

POSES = ((12, 4, -3), (-7, 0, 9), (0, 0, 0))
ABSENT = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)


@pytest.fixture
def laid(tmp_path: Path) -> Bundle:
    fixture = fixture_of(draw_part(), REGION, turn=30, shift=20)
    return write_tiny_bundle(tmp_path / "laid", fixture=fixture)


@pytest.fixture
def detector(laid: Bundle) -> Iterator[Detector]:
    with Detector(laid, "onnxruntime") as detector:
        yield detector


def frames() -> list[Frame]:
    """Frames of the poses, with one after the first that does not show the part."""
    images = [draw_part(*pose) for pose in POSES]
    images.insert(1, ABSENT)
    return [Frame("camera", number, image) for number, image in enumerate(images)]


def require_poses(verdicts: list[Verdict]) -> None:
    assert verdicts[1].name == "unjudged"
    assert verdicts.pop(1).pose is None
    for verdict, (turn, x, y) in zip(verdicts, POSES, strict=True):
        assert verdict.pose is not None
        assert verdict.pose.turn == pytest.approx(turn, abs=0.3)
        assert (verdict.pose.shift_x, verdict.pose.shift_y) == pytest.approx((x, y), abs=0.5)
        assert verdict.pose.quality > 0.8


def test_each_frame_of_a_batch_has_its_own_pose(detector: Detector) -> None:
    require_poses(detector.judge_batch(frames()))
    require_poses([detector.judge(frame) for frame in frames()])
    prepared = [Prepared.of(frame, detector.prepare) for frame in frames()]
    require_poses([verdict for _, verdict in judge_in_flight(detector, prepared, 2)])


def test_an_image_of_the_python_api_has_a_pose(detector: Detector) -> None:
    pose = detector(draw_part(12, 4, -3)).pose
    assert pose is not None
    assert pose.turn == pytest.approx(12, abs=0.3)


def test_the_pose_is_in_the_json_line_and_the_csv_row(
    detector: Detector, laid: Bundle, tmp_path: Path
) -> None:
    frame = frames()[0]
    judgement = Judgement(frame, detector.judge(frame), 10.0)
    line = json.loads(json.dumps(record(judgement)))
    assert list(line["pose"]) == ["turn", "dx", "dy", "match"]
    assert line["pose"]["turn"] == pytest.approx(12, abs=0.3)
    assert (line["pose"]["dx"], line["pose"]["dy"]) == pytest.approx((4, -3), abs=0.5)
    path = tmp_path / "a.csv"
    with open_output(f"csv:{path}", laid) as output:
        output.write(judgement)
        output.finish({"frames": 1})
    with path.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    for name, value in line["pose"].items():
        assert row[f"pose_{name}"] == str(value)


def test_without_a_fixture_a_line_has_no_pose(bundle: Bundle) -> None:
    with Detector(bundle, "onnxruntime") as detector:
        verdict = detector.judge(Frame("camera", 0, draw_part()))
    assert verdict.pose is None
    assert "pose" not in record(Judgement(Frame("camera", 0, draw_part()), verdict, 10.0))
