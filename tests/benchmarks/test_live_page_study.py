"""The study of the live page: its turns, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra web")

from flawline.benchmarks.studies.live_page import __main__ as study
from flawline.runtime.bundle import Bundle


def test_the_stream_takes_turns_with_and_without_the_page(
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(study, "SIZES", ((64, 48),))
    monkeypatch.setattr(study, "RATES", (50,))
    monkeypatch.setattr(study, "SETTLE_S", 0.1)
    out = tmp_path / "page"
    words = ["--bundle", str(bundle.path), "--engine", "onnxruntime", "--out", str(out)]
    assert study.main([*words, "--seconds", "0.2", "--rounds", "1"]) == 0
    (row,) = json.loads(out.with_suffix(".json").read_text())["rows"]
    for name in study.VARIANTS:
        assert row[name]["fps"] > 0
        assert row[name]["megabytes"] > 0
    assert row["without"]["ratio"] == 1
    page = out.with_suffix(".md").read_text()
    assert page.strip() in capsys.readouterr().out
    assert "| 64x48 | 50 | open |" in page


def test_wrong_flags_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study.main(["--bundle", "x", "--rounds", "0"])
    assert "--rounds 1 or more" in capsys.readouterr().err
