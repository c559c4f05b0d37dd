"""The study of the hot swap: its turns, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flawline.benchmarks.studies.swap import __main__ as study
from flawline.runtime.bundle import Bundle


def test_a_stream_takes_bundles_in_turns_and_loses_no_frame(
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(study, "SIZES", ((64, 48),))
    out = tmp_path / "swap"
    words = ["--bundle", str(bundle.path), "--engine", "onnxruntime", "--threads", "1"]
    assert study.main([*words, "--seconds", "0.3", "--rounds", "2", "--out", str(out)]) == 0
    (row,) = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert 0 < row["taken_s"]["smallest"] <= row["taken_s"]["median"]
    assert row["gap_ms"]["median"] > 0
    assert row["swap_gap_ms"]["median"] > 0
    assert row["lost"] == 0
    assert row["engine"].startswith("onnxruntime")
    page = out.with_suffix(".md").read_text()
    assert page.strip() in capsys.readouterr().out
    assert "| 64x48 |" in page


def test_a_stream_that_ends_says_why(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--bundle", str(bundle.path), "--engine", "onnxruntime", "--precision", "int8"]
    assert study.main([*words, "--rounds", "1"]) == 2
    assert "its last message: flawline stream: " in capsys.readouterr().err


def test_wrong_flags_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study.main(["--bundle", "x", "--rounds", "0"])
    assert "--rounds and --fps 1 or more" in capsys.readouterr().err
