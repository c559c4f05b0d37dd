"""The measured choice of an engine, with toy engines and given times."""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import SIZE, write_levels, write_tiny_bundle
from toys.timed_engines import Second, listed_alone

from flawline.__main__ import main
from flawline.export import measured_choice
from flawline.export.measured_choice import ROUNDS, TimeTurn, choose_by_measurement
from flawline.runtime.bundle import Bundle, add_model, read_bundle, write_calibration
from flawline.runtime.engines import (
    ENGINES,
    REFERENCE_ENGINE,
    Engine,
    EngineError,
    EngineOptions,
    open_engine,
)
from flawline.runtime.engines.choice import Figure, read_choice, record_path
from flawline.runtime.image import Image
from flawline.runtime.scored_by import ScoredBy

TOYS = "toys.timed_engines"
DEFAULTS = EngineOptions()


@pytest.fixture(autouse=True)
def only_toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Where a test starts the command.
    monkeypatch.setattr(measured_choice, "TURN_S", 0)
    monkeypatch.setattr(measured_choice, "SETTLE_S", 0)
    with listed_alone(
        monkeypatch, absent="Absent", first="First", second="Second", broken="Broken"
    ):
        yield


def given(**milliseconds: float) -> TimeTurn:
    """Return a substitute for timing that gives an engine its time."""

    def turn(engine: Engine, image: Image) -> list[float]:
        engine(image)
        return [milliseconds[f"{engine.name}_{engine.precision}"]]

    return turn


def measure(bundle: Bundle, turn: TimeTurn, data: Path | None = None) -> str:
    return str(choose_by_measurement(bundle, DEFAULTS, {}, data, turn))


def test_the_fastest_that_is_not_lossy_is_chosen_recorded_and_used(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    turn = given(first_fp32=4, second_fp32=3, second_bf16=1)
    assert measure(bundle, turn) == "second fp32"
    choice = read_choice(record_path(bundle, DEFAULTS))
    assert choice is not None
    assert choice.figures[1] == Figure("second", "fp32", 3)
    assert [str(figure) for figure in choice.figures] == [
        "second bf16",
        "second fp32",
        "first fp32",
    ]
    text = capsys.readouterr().err
    assert "left out absent: pip install absent" in text
    assert "left out broken fp32: the CPU is too old" in text
    assert "left out first int8: the bundle has no int8 graph" in text
    assert re.search(r"second bf16 +1\.00 ms per image  its threshold would have", text)
    assert re.search(r"second fp32 +3\.00 ms per image  chosen\n", text)
    assert re.search(r"first fp32 +4\.00 ms per image\n", text)
    assert "second bf16 takes 33% of the time of second fp32" in text
    assert open_engine(bundle).name == "second"
    assert "auto takes second fp32" in capsys.readouterr().err


def test_the_engines_take_turns_with_one_image(bundle: Bundle) -> None:
    calls = []

    def turn(engine: Engine, image: Image) -> list[float]:
        assert image.shape == (1, SIZE, SIZE, 3)
        calls.append(f"{engine.name} {engine.precision}")
        # One disturbed turn of each does not decide.
        return [1e6 if len(calls) <= 3 else float(len(engine.name))]

    assert measure(bundle, turn) == "first fp32"
    assert calls == ["first fp32", "second fp32", "second bf16"] * ROUNDS


def test_turns_are_announced_only_for_several_engines(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(bundle, given(first_fp32=4, second_fp32=3, second_bf16=1))
    assert "timing 3 engines and precisions in turns" in capsys.readouterr().err
    monkeypatch.delitem(ENGINES, "second")
    assert measure(bundle, given(first_fp32=4)) == "first fp32"
    assert "in turns" not in capsys.readouterr().err


def test_other_processes_during_the_timing_are_reported(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turn = given(first_fp32=4, second_fp32=3, second_bf16=1)
    for share, reported in ((None, False), (0.02, False), (0.5, True)):
        monkeypatch.setattr(measured_choice, "share_of_others", lambda *_, share=share: share)
        measure(bundle, turn)
        text = capsys.readouterr().err
        assert ("warning: other processes used 50% of the CPU" in text) == reported


def test_a_lossy_engine_that_is_hardly_faster_is_not_advertised(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(bundle, given(first_fp32=4, second_fp32=3, second_bf16=2.9))
    assert "to use it" not in capsys.readouterr().err
    options = EngineOptions(precision="bf16")
    turn = given(first_fp32=4, second_fp32=3, second_bf16=2.9)
    choose_by_measurement(bundle, options, {}, None, turn)
    assert "second bf16 takes 97% of the time of second fp32; to use it" in capsys.readouterr().err


def test_the_engine_of_a_lossy_threshold_is_chosen_whatever_its_time(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = ScoredBy("second", "bf16")
    write_calibration(bundle, replace(bundle.calibration, scored_by=scored))
    bundle = read_bundle(bundle.path)
    turn = given(first_fp32=1, second_fp32=1, second_bf16=2)
    assert measure(bundle, turn) == "second bf16"
    assert "first fp32       1.00 ms per image  the threshold was set" in capsys.readouterr().err
    monkeypatch.setitem(ENGINES, "second", f"{TOYS}:Absent")
    with pytest.raises(EngineError, match="scores of second bf16, which cannot be used here"):
        measure(bundle, turn)


def test_without_any_engine_that_passes_nothing_is_recorded(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        monkeypatch.delitem(ENGINES, name)
    with pytest.raises(EngineError, match="no engine of this machine passes the self-test of"):
        measure(bundle, given())
    assert read_choice(record_path(bundle, DEFAULTS)) is None


def test_a_folder_that_cannot_be_written_is_reported_before_anything_is_timed(
    bundle: Bundle,
) -> None:
    # Also a superuser cannot write there.
    (bundle.path / "engines").write_bytes(b"")
    with pytest.raises(
        EngineError, match=r"the choice of an engine cannot be written to .*engines"
    ):
        measure(bundle, given())


def not_called(engine: Engine, image: Image) -> list[float]:
    raise AssertionError("an engine was timed")


def test_a_folder_in_the_place_of_the_record_is_reported_before_anything_is_timed(
    bundle: Bundle,
) -> None:
    record_path(bundle, DEFAULTS).mkdir(parents=True)
    with pytest.raises(EngineError, match=r"choice\.json \(Is a directory\); check the path"):
        measure(bundle, not_called)


@pytest.mark.parametrize("present", [False, True])
def test_a_record_that_cannot_be_replaced_is_reported_before_anything_is_timed(
    present: bool, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record_path(bundle, DEFAULTS)
    path.parent.mkdir()
    if present:
        path.write_bytes(b"{}")

    def refuse(old: Path, new: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(new))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(EngineError, match=r"choice\.json \(Operation not permitted\); check the"):
        measure(bundle, not_called)
    # Nothing is left of the attempt.
    assert [file.name for file in path.parent.iterdir()] == ["choice.json"] * present


def test_the_place_of_the_record_is_checked_before_a_graph_is_added(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle.path / "engines").write_bytes(b"")
    words = ["build", "--bundle", str(bundle.path), "--precision", "int8"]
    assert main(words) == 2
    assert "the choice of an engine cannot be written" in capsys.readouterr().err


def test_the_record_is_in_the_engine_cache_if_there_is_one(bundle: Bundle, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    turn = given(first_fp32=4, second_fp32=3, second_bf16=1)
    choose_by_measurement(bundle, EngineOptions(cache=cache), {}, None, turn)
    assert len(list(cache.glob("bundle-*/choice.json"))) == 1
    assert not (bundle.path / "engines").exists()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Uniform images, whose score is their grey level, far from the threshold of 100."""
    levels = {"train/good": range(40, 70), "test/good": [80, 90], "test/bright": [120, 140]}
    return write_levels(tmp_path / "data", levels, SIZE)


@pytest.mark.parametrize(
    ("drift", "included"), [(0.05, True), (5.0, False)], ids=["passes", "drifts"]
)
def test_with_data_a_lossy_engine_is_compared_on_its_images(
    drift: float,
    included: bool,
    bundle: Bundle,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def call(self: Second, image: Image) -> tuple[np.ndarray, np.ndarray]:
        scores, maps = super(Second, self).__call__(image)
        # The golden images are noise, on which this engine is right.
        return scores + (drift if self.precision == "bf16" and image.std() < 1 else 0), maps

    monkeypatch.setattr(Second, "__call__", call)
    monkeypatch.setitem(ENGINES, REFERENCE_ENGINE, f"{TOYS}:First")
    times = {f"{REFERENCE_ENGINE}_fp32": 5.0}
    measure(bundle, given(first_fp32=4, second_fp32=3, second_bf16=1, **times), data)
    choice = read_choice(record_path(bundle, DEFAULTS))
    assert choice is not None
    assert ("second bf16" in [str(figure) for figure in choice.figures]) == included
    text = capsys.readouterr().err
    assert "second bf16: parity on" in text
    assert ("left out second bf16: the engine's scores are off" in text) != included


def test_the_command_that_adopts_a_lossy_engine_works_as_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_tiny_bundle(tmp_path / "good cells")
    good = tmp_path / "good"
    good.mkdir()
    for level in range(100):
        image = cv2.imencode(".png", np.full((SIZE, SIZE, 3), level, np.uint8))[1]
        (good / f"{level}.png").write_bytes(image.tobytes())
    measure(bundle, given(first_fp32=4, second_fp32=3, second_bf16=1))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "to use it" in line]
    command = line.partition("set the threshold with its scores: ")[2]
    assert "build" not in command
    words = shlex.split(command.partition("flawline ")[2])
    words[words.index("GOOD_PARTS")] = str(good)
    assert main(words) == 0
    assert read_bundle(bundle.path).calibration.scored_by == ScoredBy("second", "bf16")
    engine = open_engine(read_bundle(bundle.path))
    assert (engine.name, engine.precision) == ("second", "bf16")
    # The record of the engine comes and goes with its threshold.
    assert main(["calibrate", "--bundle", str(bundle.path), "--undo"]) == 0
    assert read_bundle(bundle.path).calibration == bundle.calibration
    assert open_engine(read_bundle(bundle.path)).precision == "fp32"


def test_another_graph_makes_the_record_invalid(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(bundle, given(first_fp32=4, second_fp32=3, second_bf16=1))
    bundle = add_model(bundle, "int8", bundle.model().read_bytes())
    capsys.readouterr()
    assert open_engine(bundle).name == "first"
    assert "they were measured with other graphs" in capsys.readouterr().err
    assert measure(bundle, given(first_fp32=4, second_fp32=3, second_bf16=5, first_int8=1)) == (
        "second fp32"
    )
