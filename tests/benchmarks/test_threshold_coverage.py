"""The study of stated against realised false-alarm rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from flawline.benchmarks.studies.threshold_coverage.__main__ import main
from flawline.benchmarks.studies.threshold_coverage.measure import realised_rates
from flawline.benchmarks.studies.threshold_coverage.report import describe, read_rows
from flawline.runtime.bundle import Bundle


@pytest.fixture
def good_parts(tmp_path: Path) -> Path:
    """30 images of grey 20 to 49: with the tiny model, the score is the grey value."""
    folder = tmp_path / "good"
    folder.mkdir()
    for i in range(30):
        cv2.imwrite(str(folder / f"{i:02d}.png"), np.full((32, 32), 20 + i, np.uint8))
    return folder


def test_realised_rates_agree_with_the_stated_rate_and_its_interval() -> None:
    scores = np.random.default_rng(0).normal(size=20_000)
    coverage = realised_rates(scores, 0.05, count=100, resamplings=100)
    assert coverage.rates.shape == (100,)
    assert 0.04 < coverage.rates.mean() < 0.06
    assert 0.9 <= coverage.inside_interval <= 0.99
    low, high = coverage.percentiles(5, 95)
    assert low < 0.05 < high


def test_the_command_reports_the_stated_rate(
    bundle: Bundle, good_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--bundle", str(bundle.path), "--images", str(good_parts)]
    assert main([*command, "--count", "19"]) == 0
    assert "stated 5.0%" in capsys.readouterr().out


@pytest.mark.parametrize("count", ["0", "-5"])
def test_a_threshold_from_no_images_is_refused(
    count: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--bundle", "bundle", "--images", "good", "--count", count])
    assert stopped.value.code == 2
    assert f"--count {count} sets no threshold; give at least 1 image" in capsys.readouterr().err


def test_too_few_images_are_one_line(
    bundle: Bundle, good_parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--bundle", str(bundle.path), "--images", str(good_parts)]) == 2
    lines = capsys.readouterr().err.splitlines()
    # Only the choice of an engine is logged before.
    errors = [line for line in lines if not line.startswith("auto takes ")]
    assert len(errors) == 1
    assert "30 images leave none to test on" in errors[0]


# ---------------------------------------------------------------- out-of-fold scores


def row(number: int, realised: float) -> dict[str, Any]:
    split = {"stated": 1 / 13, "low": 0.002, "high": 0.265, "realised": 0.3}
    folds = {"stated": 1 / 61, "low": 0.0, "high": 0.049, "realised": realised}
    facts = {"method": "m", "set": "s", "weights": "w", "size": 64, "steps": None, "count": 60}
    outcomes = {"out_of_fold": folds, "equal_rate": folds, "hold_out": split}
    return {**facts, "draw": number, "tested": 120, **outcomes}


def test_the_page_compares_stated_and_realised_rates() -> None:
    page = describe([row(0, 0.01), row(1, 0.02), row(2, 0.06), row(3, 0.0)])
    out_of_fold, _, hold_out = [line for line in page.splitlines() if line.startswith("| m |")]
    assert "| 4 | out of fold, 60 scores | 1.6% | 2.25% ± 1.14% |" in out_of_fold
    assert "| 0.00% to 4.9% | 75.0% | 9" in out_of_fold
    assert "hold-out, 12 scores | 7.7% | 30.00% ± 0.00% |" in hold_out
    # Never inside. 95 % are expected, less the sampling noise of 120 images.
    assert "| 0.20% to 26.5% | 0.0% | 87.6% |" in hold_out
    assert "5.4 times narrower than that of the hold-out, each at its own rate" in page


def test_draws_train_and_are_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    from builders import write_squares

    data = write_squares(tmp_path / "squares", {"train/good": 16, "test/good": 4})
    out = tmp_path / "results" / "t"
    command = ["--data", str(data), "--method", "padim", "--weights", "random", "--size", "64"]
    command += ["--count", "10", "--out", str(out)]
    assert main([*command, "--draws", "1"]) == 0
    (first,) = read_rows(out)
    assert first["tested"] == 10
    assert first["out_of_fold"]["stated"] == pytest.approx(1 / 11)
    assert first["out_of_fold"]["low"] == 0
    assert first["hold_out"]["stated"] == first["equal_rate"]["stated"] == pytest.approx(1 / 3)
    for kind in ("out_of_fold", "hold_out"):
        assert 0 <= first[kind]["realised"] <= 1
    assert main([*command, "--draws", "2"]) == 0
    rows = read_rows(out)
    assert [entry["draw"] for entry in rows] == [0, 1]
    assert rows[0] == first
    assert "| padim | squares | 2 | out of fold, 10 scores |" in capsys.readouterr().out
    # Other images of the same names, whose draws are all made again.
    image = data / "test/good/000.png"
    image.write_bytes(image.read_bytes() + b"1")
    assert main([*command, "--draws", "1"]) == 0
    (again,) = read_rows(out)
    assert again["images_sha256"] != first["images_sha256"]
    assert main([*command, "--count", "20"]) == 2
    assert "20 good images leave none to test on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --bundle and --images, or --data"),
        (["--data", "d", "--bundle", "b"], "--data trains, and takes neither --bundle nor"),
        (["--data", "d", "--draws", "0"], "--draws and --tested must be at least 1"),
    ],
)
def test_flags_of_both_forms_do_not_mix(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(flags)
    assert message in capsys.readouterr().err


def test_a_file_of_another_study_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    from builders import write_squares

    data = write_squares(tmp_path / "squares", {"train/good": 16})
    command = ["--data", str(data), "--method", "padim", "--weights", "random", "--size", "64"]
    for content in ("{", "[{}]", '[{"method": 1}]'):
        (tmp_path / "t.json").write_text(content)
        assert main([*command, "--out", str(tmp_path / "t")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("; delete it or give another --out")
