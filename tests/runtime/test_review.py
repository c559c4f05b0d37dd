"""Three answers: between the two thresholds, a part is for a person to look at."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.runtime import Detector, infer_stream
from flawline.runtime.bundle import Bundle, BundleError, read_bundle, write_calibration
from flawline.runtime.calibrate import main as calibrate
from flawline.runtime.calibration import Level
from flawline.runtime.caption import with_caption
from flawline.runtime.engines import EngineOptions
from flawline.runtime.engines.auto import calibrate_command
from flawline.runtime.outputs.modbus import VERDICTS
from flawline.runtime.station.tally import Tally
from flawline.runtime.threshold import CalibrationError, describe, set_threshold
from flawline.runtime.verdict import ANOMALOUS, GOOD, REVIEW, UNJUDGED, Verdict

LEVEL = Level(60.0, 0.05, (0.03, 0.09))
# With the tiny model, the score of a uniform image is its grey value.
GREYS = {"0": 20, "1": 80, "2": 200}


@pytest.fixture
def reviewing(bundle: Bundle) -> Bundle:
    """Scores above 60 are reviewed, and those above 100 rejected."""
    write_calibration(bundle, replace(bundle.calibration, review=LEVEL))
    return read_bundle(bundle.path)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A good part, one for review, an anomalous one, and a file that cannot be judged."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for name, grey in GREYS.items():
        write_grey(folder / f"{name}.png", grey)
    (folder / "3.png").write_bytes(b"")
    return folder


def write_grey(path: Path, grey: int) -> None:
    image = np.full((40, 50, 3), grey, np.uint8)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def write_greys(folder: Path, count: int) -> Path:
    folder.mkdir()
    for grey in range(20, 20 + count):
        write_grey(folder / f"{grey}.png", grey)
    return folder


def stream(bundle: Bundle, parts: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    words = ["--bundle", str(bundle.path), "--camera", str(parts), *flags]
    assert infer_stream.main(words) == 0
    return capsys.readouterr().out


def test_the_second_threshold_is_the_conformal_rank_of_its_rate() -> None:
    calibration = set_threshold(np.arange(99.0), 0.01, review_rate=0.1)
    assert calibration.threshold > 98
    assert calibration.review is not None
    # ceil(100 x 0.9) = 90 of 99 scores are below it.
    assert 89 < calibration.review.threshold < 90
    assert calibration.review.rate == 0.1
    low, high = calibration.review.interval
    assert low < 0.1 < high
    assert set_threshold(np.arange(99.0), 0.01).review is None


def test_out_of_fold_scores_have_an_upper_bound_alone() -> None:
    calibration = set_threshold(np.arange(99.0), 0.01, folds=5, review_rate=0.1)
    assert calibration.review is not None
    assert calibration.review.interval[0] == 0
    assert 0.1 < calibration.review.interval[1] < 0.2
    assert "at most" in describe(calibration, 0.01)[-1]


@pytest.mark.parametrize(
    ("rate", "remedy"),
    [
        (0.05, "is not above the false-alarm rate of 0.05.*give --review-rate 0.06 or more"),
        (0.01, "is not above the false-alarm rate"),
        (0.055, "by at least one of 99"),
        (0.0, "review rate 0 is not between 0 and 1"),
        (1.0, "is not between 0 and 1"),
    ],
)
def test_a_review_rate_that_adds_no_part_is_refused(rate: float, remedy: str) -> None:
    with pytest.raises(CalibrationError, match=remedy):
        set_threshold(np.arange(99.0), 0.05, review_rate=rate)
    set_threshold(np.arange(99.0), 0.05, review_rate=0.06)


def test_a_bundle_keeps_the_level_and_older_versions_refuse_the_key(
    bundle: Bundle, reviewing: Bundle
) -> None:
    assert reviewing.calibration.review == LEVEL
    content = json.loads((bundle.path / "calibration.json").read_text())
    assert content["review"] == {"threshold": 60.0, "rate": 0.05, "interval": [0.03, 0.09]}
    write_calibration(reviewing, replace(reviewing.calibration, review=None))
    # Every key that a version does not know is refused; without a level there is none.
    assert "review" not in json.loads((bundle.path / "calibration.json").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 101.0}, "threshold 101 is above the one that rejects, 100"),
        ({"rate": 0.005}, "rate 0.005 is below the false-alarm rate, 0.01"),
        ({"rate": 1.0}, "rate is not between 0 and 1"),
        ({"threshold": "60"}, "review: threshold is '60', not of type float"),
        ({"threshold": -1e9}, "review: the threshold -1e.09 is implausible"),
        ({"more": 1}, "review: this version does not know more"),
    ],
)
def test_an_edited_level_that_makes_no_sense_is_refused(
    reviewing: Bundle, change: dict[str, object], message: str
) -> None:
    path = reviewing.path / "calibration.json"
    content = json.loads(path.read_text())
    content["review"] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=message):
        read_bundle(reviewing.path)


def test_the_level_can_be_edited(reviewing: Bundle) -> None:
    path = reviewing.path / "calibration.json"
    content = json.loads(path.read_text())
    content["review"]["threshold"] = 10.0
    path.write_text(json.dumps(content))
    with Detector(reviewing.path) as detector:
        assert detector(np.full((40, 50), 20, np.uint8)).name == REVIEW


def test_calibrate_sets_both_and_says_when_the_review_ends(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_greys(tmp_path / "good", 30)
    words = ["--bundle", str(bundle.path), "--images", str(good), "--false-alarm-rate", "0.05"]
    assert calibrate([*words, "--review-rate", "0.2"]) == 0
    calibration = read_bundle(bundle.path).calibration
    assert calibration.review is not None
    # ceil(31 x 0.8) = 25 of 30 scores, the highest of which is 44.
    assert 44 < calibration.review.threshold < 45
    assert calibration.threshold > 48
    assert "review above 44.5, for 20.0% of good parts" in capsys.readouterr().out
    assert calibrate(words) == 0
    assert read_bundle(bundle.path).calibration.review is None
    assert "no part is reviewed any more; --review-rate 0.2 keeps" in capsys.readouterr().out
    assert calibrate(["--bundle", str(bundle.path), "--undo"]) == 0
    assert read_bundle(bundle.path).calibration == calibration
    assert "review above" in capsys.readouterr().out
    assert calibrate([*words, "--review-rate", "0.05"]) == 2
    assert "give --review-rate" in capsys.readouterr().err


def test_the_remedy_for_an_engine_of_its_own_keeps_the_review(reviewing: Bundle) -> None:
    command = calibrate_command(reviewing, "second", "bf16", EngineOptions())
    assert command.endswith("--review-rate 0.05")


def test_the_stream_says_which_parts_to_review(
    reviewing: Bundle, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.csv"
    flags = ("--output", "jsonl", "--output", f"csv:{table}")
    flags += ("--save-rejected", str(tmp_path / "saved"))
    lines = [json.loads(line) for line in stream(reviewing, parts, capsys, *flags).splitlines()]
    answers = [(line["verdict"], line["rejected"]) for line in lines[:-1]]
    expected = [(GOOD, False), (REVIEW, False), (ANOMALOUS, True), (UNJUDGED, True)]
    assert answers == expected
    assert {line["review_threshold"] for line in lines[:-1]} == {60.0}
    summary = lines[-1]["summary"]
    assert (summary["frames"], summary["review"], summary["anomalous"]) == (4, 1, 1)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == [name for name, _rejected in expected]
    assert {row["review_threshold"] for row in rows} == {"60.0"}
    # A person looks at both; the file that cannot be judged has no image.
    saved = sorted(path.stem.rsplit("-", 1)[1] for path in (tmp_path / "saved").iterdir())
    assert saved == [ANOMALOUS, REVIEW]


def test_without_a_level_nothing_is_different(
    bundle: Bundle, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in stream(bundle, parts, capsys).splitlines()]
    assert [line["verdict"] for line in lines[:-1]] == [GOOD, GOOD, ANOMALOUS, UNJUDGED]
    assert all("review_threshold" not in line for line in lines[:-1])
    assert "review" not in lines[-1]["summary"]


def test_each_of_several_cameras_counts_its_reviews(
    reviewing: Bundle, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_grey(other / "0.png", 70)
    out = stream(reviewing, parts, capsys, "--camera", str(other))
    summary = json.loads(out.splitlines()[-1])["summary"]
    assert summary["review"] == 2
    assert [camera["review"] for camera in summary["cameras"].values()] == [1, 1]


def test_the_worst_camera_decides_about_a_part(
    reviewing: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left, right = tmp_path / "left", tmp_path / "right"
    views = {left: (20, 20, 80, 20), right: (20, 80, 200, None)}
    for folder, greys in views.items():
        folder.mkdir()
        for number, grey in enumerate(greys):
            path = folder / f"{number}.png"
            path.write_bytes(b"")
            if grey is not None:
                write_grey(path, grey)
    out = stream(reviewing, left, capsys, "--camera", str(right), "--same-part")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["verdict"] for line in lines[:-1]] == [GOOD, REVIEW, ANOMALOUS, UNJUDGED]
    assert [view["verdict"] for view in lines[2]["views"]] == [REVIEW, ANOMALOUS]
    assert lines[-1]["summary"]["review"] == 1


def test_a_threshold_of_the_caller_has_the_review_of_the_caller(reviewing: Bundle) -> None:
    image = np.full((40, 50), 80, np.uint8)
    for flags, expected in (
        ({}, REVIEW),
        ({"threshold": 90.0}, GOOD),
        ({"threshold": 90.0, "review_threshold": 70.0}, REVIEW),
        ({"review_threshold": 85.0}, GOOD),
    ):
        with Detector(reviewing, **flags) as detector:  # type: ignore[arg-type]
            verdict = detector(image)
            assert verdict.name == expected
            assert verdict.review == (expected == REVIEW)
            assert not verdict.anomalous
    for odd in (95.0, float("nan")):
        with pytest.raises(ValueError, match="review threshold"):
            Detector(reviewing, threshold=90.0, review_threshold=odd)


def test_the_caption_names_both_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    monkeypatch.setattr(cv2, "putText", lambda _image, text, *_rest: texts.append(text))
    verdict = Verdict(80.0, 100.0, False, None, review_threshold=79.96)
    with_caption(np.zeros((480, 640, 3), np.uint8), verdict)
    # With three digits, score and review threshold would look equal.
    assert texts == ["review", "score 80", "threshold 100", "review 79.96"]


def test_the_tally_counts_no_reviews_without_a_level() -> None:
    tally = Tally()
    tally.add(Verdict(1.0, 2.0, False, None))
    assert "review" not in tally.summary()
    tally.add(Verdict(1.0, 2.0, False, None, review_threshold=1.5))
    assert tally.summary()["review"] == 0


def test_a_plc_gets_a_number_for_every_verdict() -> None:
    assert set(VERDICTS) == {GOOD, REVIEW, ANOMALOUS, UNJUDGED}
    assert len(set(VERDICTS.values())) == len(VERDICTS)
