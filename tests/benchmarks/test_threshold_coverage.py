"""The study of stated against realised false-alarm rates."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.benchmarks.studies.threshold_coverage.__main__ import main
from flawline.benchmarks.studies.threshold_coverage.measure import realised_rates
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
    (line,) = capsys.readouterr().err.splitlines()
    assert "30 images leave none to test on" in line
