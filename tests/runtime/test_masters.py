"""Master parts: known parts must be judged as known, and a stream may demand that they were."""

from __future__ import annotations

import argparse
import json
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from conftest import write_levels, write_tiny_bundle

from flawline.runtime.audit import entry as entry_module
from flawline.runtime.audit.__main__ import main as audit
from flawline.runtime.audit.check import check_log
from flawline.runtime.audit.entry import Entry
from flawline.runtime.bundle import Bundle, write_calibration
from flawline.runtime.detector import Detector
from flawline.runtime.infer_stream import main as stream
from flawline.runtime.masters.__main__ import main as masters
from flawline.runtime.masters.check import Masters, MastersError, check_masters
from flawline.runtime.masters.durations import describe_duration, duration_argument
from flawline.runtime.masters.record import check_and_log, last_check
from flawline.runtime.masters.rule import MastersRule
from flawline.runtime.station import masters_watch
from flawline.runtime.station.judge import Exchange, Judge
from flawline.runtime.station.masters_watch import MastersWatch
from flawline.runtime.trained_images import content_hash

# The threshold of the tiny bundle is 100.
LEVELS = {"good": (20, 60, 99), "bad": (101, 200)}
ENGINE = ("--engine", "onnxruntime")


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """A folder with good and bad master parts."""
    return write_levels(tmp_path / "known", LEVELS, 64)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return write_levels(tmp_path / "parts", {"": (30, 150)}, 64)


def flags(known: Path) -> list[str]:
    return ["--good", str(known / "good"), "--bad", str(known / "bad"), *ENGINE]


def logged(bundle: Bundle) -> list[Entry]:
    entries = check_log(bundle.path / "audit.jsonl").entries
    return [entry for entry in entries if entry.what == "masters"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Hours that are added to the time of entries that are written."""
    hours = [0.0]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(timezone.utc) + timedelta(hours=hours[0])

    monkeypatch.setattr(entry_module, "datetime", Clock)
    return hours


# The command.


def test_known_parts_that_are_judged_as_known_pass(
    bundle: Bundle, known: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert masters([str(bundle.path), *flags(known)]) == 0
    assert capsys.readouterr().out == (
        "passed: 3 good master parts accepted, 2 bad ones rejected\n"
    )
    (entry,) = logged(bundle)
    assert entry.new == {
        "bundle": bundle.short_id,
        "engine": "onnxruntime",
        "precision": "fp32",
        "threshold": 100.0,
        "review_threshold": None,
        "good": 3,
        "bad": 2,
        "passed": True,
        "wrong": [],
    }
    assert entry.note == "3 good master parts accepted, 2 bad ones rejected"


@pytest.mark.parametrize(("folder", "level"), [("good", 130), ("bad", 80)])
def test_a_part_that_is_judged_wrong_fails(
    bundle: Bundle, known: Path, folder: str, level: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write_levels(known / folder, {"wrong": (level,)}, 64)
    assert masters([str(bundle.path), *flags(known)]) == 1
    printed = capsys.readouterr().out.splitlines()
    name = "anomalous instead of good" if folder == "good" else "good instead of anomalous"
    assert printed[0].endswith(f"{level}.png is {name} (score {level})")
    assert printed[1] == "failed: 1 of 6 master parts judged wrong"
    (entry,) = logged(bundle)
    assert entry.new is not None
    assert entry.new["passed"] is False
    assert [Path(name).name for name in entry.new["wrong"]] == [f"{level}.png"]


@pytest.mark.parametrize("folder", ["good", "bad"])
def test_a_part_for_review_is_neither_accepted_nor_rejected(
    tmp_path: Path, known: Path, folder: str
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    write_levels(known / folder, {"doubtful": (95,)}, 64)
    detector = Detector(bundle, "onnxruntime", threshold=97.0, review_threshold=90.0)
    with detector:
        result = check_masters(detector, Masters(str(known / "good"), str(known / "bad")))
    names = {Path(master.source).name: master.verdict.name for master in result.wrong}
    assert names["95.png"] == "review"


def test_a_damaged_part_shows_nothing(bundle: Bundle, known: Path) -> None:
    (known / "bad" / "200.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert masters([str(bundle.path), *flags(known)]) == 1
    (entry,) = logged(bundle)
    assert "200.png is unjudged instead of anomalous (" in str(entry.note)


def test_parts_that_the_detector_was_trained_on_are_noted(
    tmp_path: Path, known: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hashes = (content_hash(known / "good" / "60.png"),)
    bundle = write_tiny_bundle(tmp_path / "bundle", trained_images=hashes)
    assert masters([str(bundle.path), *flags(known)]) == 0
    assert "the detector was trained on 1 of 3 good master parts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "BUNDLE, --good and --bad are needed (or --station)"),
        (["B", "--good", "g"], "BUNDLE, --good and --bad are needed (or --station)"),
        (["--station", "s.json", "--good", "g"], "--good does not go with --station"),
        (["B", "--good", "g", "--bad", "b", "--max-frames", "0"], "--max-frames must be at least"),
    ],
)
def test_wrong_flags_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        masters(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_source_without_parts_or_without_end_is_an_error(
    bundle: Bundle, known: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none").mkdir()
    words = ["--good", str(tmp_path / "none"), "--bad", str(known / "bad"), *ENGINE]
    assert masters([str(bundle.path), *words]) == 2
    words[1] = "synthetic://?fps=500"
    assert masters([str(bundle.path), *words]) == 2
    assert "does not end by itself" in capsys.readouterr().err
    assert logged(bundle) == []


def test_a_camera_gives_so_many_parts_of_each_kind(bundle: Bundle) -> None:
    camera = "synthetic://?width=64&height=48&fps=500"
    words = ["--good", camera, "--bad", camera, "--max-frames", "2", *ENGINE]
    assert masters([str(bundle.path), *words]) == 1
    (entry,) = logged(bundle)
    assert entry.new is not None
    assert (entry.new["good"], entry.new["bad"]) == (2, 2)


def test_a_check_is_no_change_of_the_bundle(
    bundle: Bundle, known: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert masters([str(bundle.path), *flags(known)]) == 0
    capsys.readouterr()
    assert audit([str(bundle.path)]) == 0
    assert "note: " not in capsys.readouterr().out
    write_calibration(bundle, bundle.calibration)
    assert {entry.what for entry in check_log(bundle.path / "audit.jsonl").entries} == {
        "build",
        "masters",
    }


# What a stream demands.


def test_a_stream_begins_only_if_its_master_parts_pass(
    bundle: Bundle, known: Path, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--bundle", str(bundle.path), "--camera", str(parts), *ENGINE]
    checked = ["--masters", str(known / "good"), str(known / "bad")]
    assert stream([*words, *checked]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    write_levels(known / "good", {"wrong": (130,)}, 64)
    assert stream([*words, *checked]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "1 of 6 master parts judged wrong: " in printed.err
    assert [(entry.new or {})["passed"] for entry in logged(bundle)] == [True, False]


def test_a_stream_may_demand_a_check_that_is_young_enough(
    bundle: Bundle,
    known: Path,
    parts: Path,
    clock: list[float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--bundle", str(bundle.path), "--camera", str(parts), *ENGINE]
    words += ["--masters-max-age", "12h"]
    assert stream(words) == 1
    assert "no master parts were checked with onnxruntime in fp32" in capsys.readouterr().err
    clock[0] = -13
    assert masters([str(bundle.path), *flags(known)]) == 0
    assert stream(words) == 1
    assert "is older than 12 h (" in capsys.readouterr().err
    clock[0] = -11
    assert masters([str(bundle.path), *flags(known)]) == 0
    assert stream(words) == 0
    clock[0] = 1
    assert masters([str(bundle.path), *flags(known)]) == 0
    assert stream(words) == 1
    assert "in the future; set the clock" in capsys.readouterr().err


def test_only_a_check_of_the_same_engine_and_threshold_counts(bundle: Bundle, known: Path) -> None:
    parts = Masters(str(known / "good"), str(known / "bad"))
    rule = MastersRule(None, 3600.0)
    with Detector(bundle, "onnxruntime") as detector:
        check_and_log(detector, parts)
        assert rule.fault(detector) is None
        entry = last_check(detector)
        detector.threshold = 90.0
        assert str(rule.fault(detector)).startswith(f"bundle {bundle.path}: no master parts were")
        assert not check_and_log(detector, parts).passed
        assert "the last check of master parts failed: 1 of 5" in str(rule.fault(detector))
        detector.threshold = 100.0
        assert last_check(detector) == entry
        with pytest.raises(MastersError):
            MastersRule(Masters(parts.bad, parts.good), None).require(detector)
        assert "failed: 5 of 5" in str(rule.fault(detector))


def test_a_running_stream_ends_when_a_check_fails_or_becomes_too_old(
    bundle: Bundle, known: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masters_watch, "POLL_S", 0.01)
    monkeypatch.setattr(masters_watch, "LOOK_S", 0.02)
    parts = Masters(str(known / "good"), str(known / "bad"))
    with Detector(bundle, "onnxruntime") as detector:
        exchange = Exchange(Judge(detector, masters=MastersRule(parts, 3600.0)))
        for hours, good in ((0.0, parts.bad), (-2.0, parts.good)):
            check_and_log(detector, parts)
            ended = threading.Event()
            watch = MastersWatch(exchange, ended.set)
            watch.__enter__()
            assert not ended.wait(0.1)
            clock[0] = hours
            check_and_log(detector, Masters(good, parts.bad))
            assert ended.wait(20)
            message = "failed" if hours == 0 else "older than 1 h"
            with pytest.raises(MastersError, match=f"the stream was ended: .*{message}"):
                watch.__exit__(None)
            clock[0] = 0.0


def test_a_recipe_that_fails_its_check_is_refused(
    tmp_path: Path, known: Path, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cap", "lid"):
        write_tiny_bundle(tmp_path / name)
    entries = []
    for name, good in (("cap", "good"), ("lid", "bad")):
        entries.append(
            {"name": name, "bundle": name, "masters": {"good": f"known/{good}", "bad": "known/bad"}}
        )
    content = {
        "recipe": "cap",
        "recipes": entries,
        "cameras": [{"uri": "parts"}],
        "engine": {"name": "onnxruntime"},
    }
    station = tmp_path / "station.json"
    station.write_text(json.dumps(content))
    assert masters(["--station", str(station)]) == 0
    assert stream(["--station", str(station)]) == 0
    station.write_text(json.dumps({**content, "recipe": "lid"}))
    assert masters(["--station", str(station)]) == 1
    assert stream(["--station", str(station)]) == 1
    assert "2 of 4 master parts judged wrong" in capsys.readouterr().err
    del entries[1]["masters"]
    station.write_text(json.dumps({**content, "recipe": "lid"}))
    assert masters(["--station", str(station)]) == 1
    assert "recipe lid has no master parts; add the key masters" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1.5h", 5400), ("2d", 172800)])
def test_a_duration_has_a_unit(text: str, seconds: float) -> None:
    assert duration_argument(text) == seconds


@pytest.mark.parametrize("text", ["", "12", "h", "-1h", "0h", "1 h", "nanh", "1e9d", "99999d"])
def test_another_duration_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a duration"):
        duration_argument(text)


def test_a_duration_is_described_in_its_largest_unit() -> None:
    texts = [describe_duration(seconds) for seconds in (5, 90, 43200, 172800)]
    assert texts == ["5 s", "1.5 min", "12 h", "2 d"]
