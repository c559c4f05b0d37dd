"""Thresholds that a person moves: who did it is known, and it can be undone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_levels

from flawline.runtime.audit.__main__ import main as audit
from flawline.runtime.bundle import Bundle, read_bundle, write_calibration
from flawline.runtime.calibrate import main as calibrate
from flawline.runtime.calibration import ByHand, Level
from flawline.runtime.moved_threshold import (
    move_thresholds,
    previous_calibration,
    revision_of,
    undo_by,
)
from flawline.runtime.threshold import CalibrationError, describe

LEVEL = Level(60.0, 0.05, (0.03, 0.09))


@pytest.fixture
def reviewing(bundle: Bundle) -> Bundle:
    write_calibration(bundle, replace(bundle.calibration, review=LEVEL))
    return read_bundle(bundle.path)


def revision(bundle: Bundle) -> str:
    return revision_of(bundle.path) or ""


def last_line(bundle: Bundle) -> dict[str, object]:
    lines = (bundle.path / "audit.jsonl").read_text().splitlines()
    content: dict[str, object] = json.loads(lines[-1])
    return content


def test_both_thresholds_are_moved_in_the_name_of_a_person(reviewing: Bundle) -> None:
    move_thresholds(reviewing, 120.0, 70.0, " Anna Berg ", revision(reviewing))
    calibration = read_bundle(reviewing.path).calibration
    assert (calibration.threshold, calibration.review_threshold) == (120.0, 70.0)
    assert calibration.by_hand == ByHand("Anna Berg", 100.0, 60.0)
    # What supports them is still about the ones before.
    assert calibration.false_alarm_rate == 0.01
    line = last_line(reviewing)
    assert line["what"] == "calibrate"
    assert line["note"] == "moved by hand by Anna Berg"


def test_the_computed_thresholds_stay_known(reviewing: Bundle) -> None:
    move_thresholds(reviewing, 120.0, None, "Anna", revision(reviewing))
    move_thresholds(reviewing, 130.0, 90.0, "Bo", revision(reviewing))
    calibration = read_bundle(reviewing.path).calibration
    assert calibration.by_hand == ByHand("Bo", 100.0, 60.0)
    lines = describe(calibration, 0.01)
    assert lines[0] == "threshold 130, moved by hand by Bo"
    assert lines[1] == "review above 90, moved by hand"
    assert lines[3].startswith("threshold 100 for 1.0% false alarms")
    assert lines[4].startswith("review above 60, for 5.0% of good parts")
    # Where they were, they follow from the good images again.
    move_thresholds(reviewing, 100.0, 60.0, "Bo", revision(reviewing))
    assert read_bundle(reviewing.path).calibration == reviewing.calibration


def test_undoing_has_a_name_too(bundle: Bundle) -> None:
    move_thresholds(bundle, 120.0, None, "Anna", revision(bundle))
    previous = previous_calibration(bundle.path, bundle.manifest)
    assert previous is not None
    assert previous.threshold == 100.0
    assert undo_by(bundle.path, "Bo", revision(bundle)) == bundle.calibration
    assert read_bundle(bundle.path).calibration == bundle.calibration
    line = last_line(bundle)
    assert (line["what"], line["note"]) == ("undo", "by Bo")


Refused = tuple[float, float | None, str, str]


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ((120.0, 130.0, "Anna", ""), "above the one that rejects, 120"),
        ((50.0, None, "Anna", ""), "review threshold 60 is above the one that rejects, 50"),
        ((120.0, None, " A ", ""), "2 to 60 characters in one line"),
        ((120.0, None, "A\nB", ""), "2 to 60 characters in one line"),
        ((120.0, None, "A" * 61, ""), "2 to 60 characters in one line"),
        ((120.0, None, "Anna", "0123"), "changed by another person or command meanwhile"),
        ((1e9, None, "Anna", ""), "threshold 1e.09 is implausible"),
    ],
)
def test_what_is_refused_changes_nothing(reviewing: Bundle, wanted: Refused, reason: str) -> None:
    threshold, review, person, seen = wanted
    before = {path.name: path.read_bytes() for path in reviewing.path.iterdir() if path.is_file()}
    with pytest.raises(Exception, match=reason):
        move_thresholds(reviewing, threshold, review, person, seen or revision(reviewing))
    after = {path.name: path.read_bytes() for path in reviewing.path.iterdir() if path.is_file()}
    assert after == before


def test_a_bundle_without_review_gets_none_by_hand(bundle: Bundle) -> None:
    with pytest.raises(CalibrationError, match="--review-rate"):
        move_thresholds(bundle, 120.0, 60.0, "Anna", revision(bundle))


def test_an_undo_needs_what_the_person_saw(bundle: Bundle) -> None:
    seen = revision(bundle)
    move_thresholds(bundle, 120.0, None, "Anna", seen)
    with pytest.raises(CalibrationError, match="look at it again"):
        undo_by(bundle.path, "Bo", seen)


Damage = Callable[[dict[str, object]], object]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.update(by_hand={"threshold": 1.0}),
        lambda content: content.update(by_hand={"person": "A", "threshold": "high"}),
        lambda content: content.update(by_hand={"person": "A", "threshold": 1.0, "more": 1}),
        lambda content: content.update(by_hand="Anna"),
    ],
)
def test_a_damaged_record_is_refused(bundle: Bundle, damage: Damage) -> None:
    path = bundle.path / "calibration.json"
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(Exception, match=r"calibration\.json: .*by_hand"):
        read_bundle(bundle.path)


def test_the_commands_say_who_moved_it(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    move_thresholds(bundle, 120.0, None, "Anna", revision(bundle))
    good = write_levels(tmp_path, {"good": range(20, 120)}, 16) / "good"
    words = ["--bundle", str(bundle.path), "--images", str(good), "--engine", "onnxruntime"]
    assert calibrate(words) == 0
    assert "old threshold 120 moved by hand by Anna: rejects 0 of these" in capsys.readouterr().out
    # The new one follows from good parts.
    assert read_bundle(bundle.path).calibration.by_hand is None
    assert audit([str(bundle.path), "--list"]) == 0
    assert "(moved by hand by Anna)" in capsys.readouterr().out
