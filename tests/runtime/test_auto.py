"""The engine that `auto` stands for, with toy engines and recorded figures."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import SIZE, write_tiny_bundle
from toys.timed_engines import First, Second, listed_alone

from flawline.__main__ import main
from flawline.commands import command_line
from flawline.runtime.bundle import (
    CALIBRATION,
    Bundle,
    BundleError,
    read_bundle,
    write_calibration,
)
from flawline.runtime.detector import Detector
from flawline.runtime.engines import ENGINES, EngineError, EngineOptions, open_engine
from flawline.runtime.engines.choice import (
    Choice,
    Figure,
    current_conditions,
    read_choice,
    record_path,
    write_choice,
)
from flawline.runtime.scored_by import ScoredBy

TOYS = "toys.timed_engines"
FIGURES = (
    Figure("second", "bf16", 1.0),
    Figure("second", "fp32", 3.0),
    Figure("first", "fp32", 4.0),
)
KINDS = {"first": First, "second": Second}


@pytest.fixture(autouse=True)
def only_toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with listed_alone(monkeypatch, first="First", second="Second"):
        yield


@pytest.fixture
def spaced(tmp_path: Path) -> Bundle:
    """A bundle whose path has to be quoted."""
    return write_tiny_bundle(tmp_path / "good cells")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A folder of a hundred different images."""
    folder = tmp_path / "good"
    folder.mkdir()
    for level in range(100):
        image = np.full((SIZE, SIZE, 3), level, np.uint8)
        assert cv2.imwrite(str(folder / f"{level}.png"), image)
    return folder


def record(
    bundle: Bundle,
    figures: Sequence[Figure] = FIGURES,
    options: EngineOptions | None = None,
    **changes: object,
) -> Path:
    """Record figures that hold here, with changed conditions."""
    options = options or EngineOptions()
    conditions = current_conditions(bundle, options.threads, KINDS)
    conditions = replace(conditions, **changes)  # type: ignore[arg-type]
    present = [figure for figure in figures if figure.engine in conditions.engines]
    path = record_path(bundle, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_choice(path, Choice(tuple(present), conditions))
    return path


def opened(bundle: Bundle, precision: str = "auto", name: str = "auto") -> str:
    engine = open_engine(bundle, name, EngineOptions(precision=precision))
    engine.close()
    return f"{engine.name} {engine.precision}"


def own_threshold(bundle: Bundle, engine: str = "second") -> Bundle:
    """Say in the calibration that the scores of a lossy engine set the threshold."""
    scored = ScoredBy(engine, "bf16")
    write_calibration(bundle, replace(bundle.calibration, scored_by=scored))
    return read_bundle(bundle.path)


def test_the_fastest_that_was_measured_is_taken(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    record(bundle)
    # The lossy one is faster, but its threshold was not set with its scores.
    assert opened(bundle) == "second fp32"
    assert (
        "auto takes second fp32, the fastest that was measured: 3.0 ms" in capsys.readouterr().err
    )
    record(bundle, [*FIGURES, Figure("first", "fp32", 2.0)])
    assert opened(bundle) == "first fp32"


def test_nothing_is_measured_at_the_start_and_the_command_is_named(
    spaced: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "my cache"
    engine = open_engine(spaced, "auto", EngineOptions(threads=2, cache=cache))
    assert (engine.name, engine.precision) == ("first", "fp32")
    (line,) = capsys.readouterr().err.splitlines()
    reason, _, remedy = line.partition("; ")
    assert reason == (
        "auto takes first, the first engine that can be used, because no measured times are "
        "recorded for this bundle"
    )
    words = shlex.split(remedy.partition("flawline ")[2])
    assert words[:3] == ["build", "--bundle", str(spaced.path)]
    assert not cache.exists()
    assert main(words) == 0
    assert (read_choice(record_path(spaced, EngineOptions(cache=cache)))) is not None
    capsys.readouterr()
    open_engine(spaced, "auto", EngineOptions(threads=2, cache=cache))
    assert "the fastest that was measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cpu": "Z80"}, "they were measured on another machine (Z80, "),
        ({"cores": 999}, "they were measured on another machine"),
        ({"graphs": {"model.onnx": "0"}}, "they were measured with other graphs: the bundle"),
        ({"engines": {"first": "0.9", "second": "1.0"}}, "first was 0.9 when they were measured"),
        ({"engines": {"first": "1.0"}}, "second was absent when they were measured, and is 1.0"),
        ({"threads": 1}, "they were measured with 1 threads"),
    ],
)
def test_figures_of_other_conditions_do_not_decide(
    bundle: Bundle, changes: dict[str, object], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record(bundle, **changes)
    assert opened(bundle) == "first fp32"
    (line,) = capsys.readouterr().err.splitlines()
    assert f"because the recorded times do not hold: {reason}" in line
    assert "flawline build --bundle" in line


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"schema": 2}', b'{"schema": 1, "figures": [1]}', b"\xff\xfe", None],
)
def test_a_damaged_record_is_one_warning(
    bundle: Bundle, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = record(bundle)
    if content is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content)
    assert opened(bundle) == "first fp32"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path}: ")
    assert "; measure again which is fastest: " in line


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"milliseconds": 1.0', '"milliseconds": -1.0'),
        ('"milliseconds": 1.0', '"milliseconds": "1"'),
        ('"precision": "bf16"', '"precision": "fp4"'),
        ('"first": "1.0"', '"first": 1'),
        ('"schema": 1', '"schema": 1, "other": 1'),
        ('"engine": "second"', '"engine": "unknown"'),
    ],
)
def test_a_record_with_another_content_is_damaged(
    bundle: Bundle, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = record(bundle)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert opened(bundle) == "first fp32"
    assert capsys.readouterr().err.startswith(f"warning: {path}: ")


def test_a_wanted_precision_takes_the_fastest_engine_that_was_measured_with_it(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert opened(bundle, "bf16") == "second bf16"
    record(bundle)
    assert opened(bundle, "bf16") == "second bf16"
    assert opened(bundle, "fp32") == "second fp32"
    record(bundle, FIGURES[:2])
    capsys.readouterr()
    with pytest.raises(EngineError, match="no engine of this machine runs fp16; choose another"):
        opened(bundle, "fp16")


def test_a_bundle_without_the_graph_of_the_default_is_opened_in_one_that_it_has(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that was taught on the box, which has the FP32 graph alone."""
    monkeypatch.setattr(First, "precisions", ("fp16", "fp32"))
    assert not bundle.has_graph("fp16")
    assert opened(bundle) == "first fp32"
    add = command_line("build", "--bundle", bundle.path, "--precision", "fp16", "--data", "DATA")
    said = f"first computes in fp32, because {bundle.path} holds no fp16 graph; add it"
    assert f"{said} where onnx is installed: {add}" in capsys.readouterr().err
    # What is named is taken as it is.
    with pytest.raises(BundleError, match="holds no fp16 graph"):
        opened(bundle, "fp16")


def test_where_there_is_nothing_to_choose_nothing_is_said(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(ENGINES, "second")
    assert opened(bundle) == "first fp32"
    assert capsys.readouterr().err == ""


def test_a_threshold_from_lossy_scores_decides_the_engine(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    record(bundle)
    bundle = own_threshold(bundle)
    assert opened(bundle) == "second bf16"
    assert opened(bundle, "bf16") == "second bf16"
    assert "auto takes second bf16, whose scores set the threshold" in capsys.readouterr().err
    # It may be asked for another one.
    assert opened(bundle, "fp32") == "second fp32"
    assert opened(bundle, name="first") == "first fp32"


@pytest.mark.parametrize(
    ("engine", "cls", "reason"),
    [
        ("second", "Absent", "pip install absent"),
        ("second", "Broken", "the CPU is too old"),
        ("other", "Second", "this version has no such engine"),
    ],
)
def test_a_threshold_of_an_engine_that_cannot_be_used_is_an_error(
    spaced: Bundle, engine: str, cls: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaced = own_threshold(spaced, engine)
    monkeypatch.setitem(ENGINES, "second", f"{TOYS}:{cls}")
    with pytest.raises(EngineError) as caught:
        opened(spaced)
    message, _, remedy = str(caught.value).partition("; ")
    assert message.endswith(f"scores of {engine} bf16, which cannot be used here ({reason})")
    assert f"--bundle '{spaced.path}' --images GOOD_PARTS --engine first" in remedy
    assert opened(spaced, name="first") == "first fp32"


def test_another_engine_than_that_of_the_threshold_is_one_warning(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    with Detector(bundle, "first"):
        pass
    assert capsys.readouterr().err == ""
    bundle = own_threshold(bundle)
    with Detector(bundle, "first"):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the threshold was set with the scores of second bf16, and")
    assert "--engine first --precision fp32" in line
    with Detector(bundle, "second", EngineOptions(precision="bf16")):
        pass
    with Detector(bundle, "first", threshold=1.0):
        pass
    assert capsys.readouterr().err == ""


def test_a_lossy_precision_whose_scores_did_not_set_the_threshold_is_one_warning(
    spaced: Bundle, good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--engine", "second", "--precision", "bf16", "--threads", "1"]
    stream = ["stream", "--bundle", str(spaced.path), "--camera", str(good), *flags]
    assert main(stream) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    message, _, command = line.partition("; set it with this engine: ")
    assert message == (
        "warning: the threshold was set with other scores, and those of second bf16 differ from "
        "them"
    )
    words = shlex.split(command.partition("flawline ")[2])
    words[words.index("GOOD_PARTS")] = str(good)
    assert main(words) == 0
    assert "warning" not in capsys.readouterr().err
    assert main(stream) == 0
    assert "warning" not in capsys.readouterr().err


def test_a_verdict_of_the_reference_does_not_bind_the_engine_of_the_threshold(
    bundle: Bundle,
) -> None:
    golden = float(bundle.golden().scores[0])
    scored = ScoredBy("second", "bf16")
    # Between the score of the reference and that of the engine, which is 0.05 higher.
    calibration = replace(bundle.calibration, threshold=golden + 0.02)
    write_calibration(bundle, calibration)
    with pytest.raises(EngineError, match="so its verdict flips"):
        opened(read_bundle(bundle.path), "bf16", "second")
    write_calibration(bundle, replace(calibration, scored_by=scored))
    assert opened(read_bundle(bundle.path)) == "second bf16"


@pytest.mark.parametrize(
    ("scored", "reason"),
    [
        ({"engine": "second", "precision": "fp32"}, "'fp32', which needs no threshold of its own"),
        ({"engine": "second", "precision": "fp4"}, "precision is 'fp4'"),
        ({"engine": "second"}, "scored_by: precision is missing"),
        ({"engine": 1, "precision": "bf16"}, "scored_by: engine is 1, not of type str"),
        ({"engine": "second", "precision": "bf16", "x": 1}, "this version does not know x"),
        ("second", "scored_by is 'second', not of type dict"),
    ],
)
def test_the_engine_of_a_threshold_is_read_strictly(
    bundle: Bundle, scored: object, reason: str
) -> None:
    path = bundle.path / CALIBRATION
    content = json.loads(path.read_text())
    # A threshold that is not from lossy scores is written as by older versions.
    assert "scored_by" not in content
    path.write_text(json.dumps({**content, "scored_by": scored}))
    with pytest.raises(BundleError, match=re.escape(reason)):
        read_bundle(bundle.path)
