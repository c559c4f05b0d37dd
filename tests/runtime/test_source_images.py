"""Images whose size is far from those of the training are refused, unless the user accepts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import write_tiny_bundle

from flawline.cameras import Frame
from flawline.runtime import calibrate, infer_stream
from flawline.runtime.bundle import Bundle, BundleError, read_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.source_images import SourceSizes
from flawline.runtime.training_length import TrainingLength

SIZES = SourceSizes.of([(300, 300), (300, 320), (310, 300)])


def frame(height: int, width: int) -> Frame:
    return Frame("line", 0, np.full((height, width, 3), 20, np.uint8))


@pytest.fixture
def sized(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "sized", source_sizes=SIZES)


def test_the_range_of_sizes() -> None:
    assert SourceSizes(300, 310, 300, 320, 300 / 310, 320 / 300) == SIZES
    assert SIZES.describe() == "300x300 to 320x310"
    assert SourceSizes.of([]) is None
    assert SourceSizes.of([(40, 60)]).describe() == "60x40"
    assert SIZES.extended(None) == SIZES
    assert SIZES.extended(SourceSizes.of([(150, 400)])) == SourceSizes.of(
        [(300, 300), (300, 320), (310, 300), (150, 400)]
    )


@pytest.mark.parametrize(
    ("height", "width"), [(300, 300), (150, 150), (620, 640), (300, 480), (450, 300)]
)
def test_sizes_near_those_of_the_training_are_judged(
    sized: Bundle, height: int, width: int
) -> None:
    with Detector(sized, "onnxruntime") as detector:
        verdict = detector.judge(frame(height, width))
    assert verdict.reason is None
    assert not verdict.anomalous


@pytest.mark.parametrize(
    ("height", "width"), [(1000, 3000), (149, 150), (621, 640), (300, 481), (480, 300), (640, 641)]
)
def test_sizes_far_from_those_of_the_training_reject_the_part(
    sized: Bundle, height: int, width: int
) -> None:
    with Detector(sized, "onnxruntime") as detector:
        verdict = detector.judge(frame(height, width))
    assert verdict.anomalous
    assert verdict.anomaly_map is None
    assert str(verdict.reason) == (
        f"the image is {width}x{height}, far from the sizes that the detector was trained on "
        "(300x300 to 320x310); check the camera, or pass --accept-size"
    )
    with Detector(sized, "onnxruntime", accept_size=True) as detector:
        assert detector.judge(frame(height, width)).reason is None


def test_a_bundle_without_sizes_judges_every_size(bundle: Bundle) -> None:
    assert bundle.manifest.source_sizes is None
    with Detector(bundle, "onnxruntime") as detector:
        assert detector.judge(frame(10, 900)).reason is None


@pytest.fixture
def wide_part(tmp_path: Path) -> Path:
    path = tmp_path / "wide.png"
    cv2.imwrite(str(path), np.full((100, 300, 3), 20, np.uint8))
    return path


def test_the_stream_rejects_them_and_has_a_flag(
    sized: Bundle, wide_part: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--bundle", str(sized.path), "--camera", str(wide_part)]
    assert infer_stream.main(command) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert line["verdict"] != "good"
    assert line["reason"].endswith("--accept-size")
    assert infer_stream.main([*command, "--accept-size"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["verdict"] == "good"


def test_frames_that_change_their_size_are_reported_and_reject_their_parts(
    sized: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = "synthetic://?width=290&height=290&fps=200&frames=20&every_frame=1&queue=20&faults=9:size"
    assert infer_stream.main(["--bundle", str(sized.path), "--camera", uri]) == 0
    captured = capsys.readouterr()
    *lines, _ = [json.loads(line) for line in captured.out.splitlines()]
    assert ["far from the sizes" in line.get("reason", "") for line in lines] == [
        index >= 9 for index in range(20)
    ]
    assert all(line["rejected"] for line in lines[9:])
    changed = "camera synthetic://: the resolution changed from 290x290 to 145x145"
    assert captured.err.splitlines().count(changed) == 1


def test_the_calibration_refuses_them_and_has_a_flag(
    sized: Bundle, wide_part: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--bundle", str(sized.path), "--images", str(wide_part), "--dry-run"]
    command += ["--false-alarm-rate", "0.5"]
    assert calibrate.main(command) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("or pass --accept-size")
    assert calibrate.main([*command, "--accept-size"]) == 0


# ---------------------------------------------------------------- in the manifest


def test_the_manifest_holds_sizes_and_the_length_of_the_training(tmp_path: Path) -> None:
    length = TrainingLength(17, 100)
    written = write_tiny_bundle(tmp_path / "b", source_sizes=SIZES, training=length)
    read = read_bundle(written.path).manifest
    assert read.source_sizes == SIZES
    assert read.training == length
    assert read.cut_short == "17 of 100 steps"
    content = json.loads((written.path / "manifest.json").read_bytes())
    assert content["training"] == {"steps_done": 17, "steps_planned": 100, "finished": False}


def test_a_bundle_of_schema_2_may_lack_them(bundle: Bundle) -> None:
    path = bundle.path / "manifest.json"
    content = json.loads(path.read_bytes())
    del content["checksum"]
    del content["training"]
    del content["source_sizes"]
    path.write_text(json.dumps(content))
    manifest = read_bundle(bundle.path).manifest
    assert manifest.source_sizes is None
    assert manifest.training is None
    assert manifest.cut_short is None


@pytest.mark.parametrize(
    ("key", "changes", "message"),
    [
        ("source_sizes", {"smallest_height": 400}, "source_sizes: a smallest value is not above 0"),
        ("source_sizes", {"smallest_width": 0}, "source_sizes: a smallest value is not above 0"),
        ("source_sizes", {"largest_width": "x"}, "source_sizes: largest_width is 'x'"),
        ("source_sizes", {"more": 1}, "source_sizes: this version does not know more"),
        ("training", {"steps_done": 101}, "training: steps_done is not from 0 to steps_planned"),
        ("training", {"finished": True}, "training: finished contradicts the numbers of steps"),
        ("training", {"finished": 1}, "training: finished is 1, not true or false"),
        ("training", {"more": 1}, "training: this version does not know more"),
    ],
)
def test_wrong_values_are_refused(
    tmp_path: Path, key: str, changes: dict[str, Any], message: str
) -> None:
    length = TrainingLength(17, 100)
    bundle = write_tiny_bundle(tmp_path / "b", source_sizes=SIZES, training=length)
    path = bundle.path / "manifest.json"
    content = json.loads(path.read_bytes())
    del content["checksum"]
    content[key].update(changes)
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=message):
        read_bundle(bundle.path)


def test_schema_1_has_neither(tmp_path: Path) -> None:
    old = read_bundle(Path(__file__).resolve().parents[1] / "golden" / "bundle-schema1")
    assert old.manifest.source_sizes is None
    assert old.manifest.training is None
