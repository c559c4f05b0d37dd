"""Of 2,000 new good parts, the shares that are rejected, reviewed and marked are as stated."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from flawline.export import build
from flawline.runtime import calibrate
from flawline.runtime.bundle import read_bundle
from flawline.runtime.calibration import Calibration
from flawline.runtime.detector import Detector
from flawline.train.data.demo import DEMO_PRODUCT, render

pytestmark = [pytest.mark.torch, pytest.mark.slow]
SIZE = 96
TRAINING = 500  # of which a fifth is held out
CALIBRATION = 300
NEW = 2000
RATES = ["--false-alarm-rate", "0.02", "--review-rate", "0.1"]


def part(seed: int) -> np.ndarray:
    image, _mask = render(DEMO_PRODUCT, None, seed, SIZE)
    return image


def write_parts(folder: Path, seeds: range) -> None:
    folder.mkdir(parents=True)
    for seed in seeds:
        cv2.imwrite(str(folder / f"{seed:04d}.png"), part(seed))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a review level, beside a folder of further good parts."""
    root = tmp_path_factory.mktemp("rates")
    write_parts(root / "data" / "train" / "good", range(TRAINING))
    write_parts(root / "more", range(TRAINING, TRAINING + CALIBRATION))
    words = ["--method", "padim", "--backbone", "resnet18", "--weights", "texture"]
    words += ["--data", str(root / "data"), "--size", str(SIZE), "--folds", "0"]
    words += ["--save-checkpoint", str(root / "c.pt"), "--out", str(root / "bundle")]
    assert build.main([*words, "--engine", "onnxruntime", *RATES]) == 0
    return root


@pytest.fixture(scope="module")
def judged(built: Path) -> tuple[np.ndarray, np.ndarray]:
    """The scores [n] of new good parts, and the largest values of their maps [n]."""
    scores = []
    peaks = []
    first = TRAINING + CALIBRATION
    with Detector(built / "bundle", "onnxruntime") as detector:
        for seed in range(first, first + NEW):
            verdict = detector(part(seed))
            assert verdict.anomaly_map is not None
            scores.append(verdict.score)
            peaks.append(verdict.anomaly_map.max())
    return np.array(scores), np.array(peaks)


def require_stated(calibration: Calibration, scores: np.ndarray, peaks: np.ndarray) -> None:
    """Check that each realised rate lies in the interval that the calibration states."""
    assert calibration.review is not None
    assert calibration.pixels is not None
    stated = {
        "reject": (scores > calibration.threshold, calibration.interval),
        "review": (scores > calibration.review.threshold, calibration.review.interval),
        "regions": (peaks > calibration.pixels.threshold, calibration.pixels.interval),
    }
    for name, (above, (low, high)) in stated.items():
        rate = float(above.mean())
        print(f"{name}: {rate:.2%}, stated {low:.2%} to {high:.2%}")
        assert low <= rate <= high, name


def test_held_out_images_state_the_rates_of_new_parts(
    built: Path, judged: tuple[np.ndarray, np.ndarray]
) -> None:
    calibration = read_bundle(built / "bundle").calibration
    assert calibration.good_images == TRAINING // 5
    require_stated(calibration, *judged)


def test_parts_on_the_box_state_the_rates_of_new_parts(
    built: Path, judged: tuple[np.ndarray, np.ndarray]
) -> None:
    words = ["--bundle", str(built / "bundle"), "--images", str(built / "more")]
    assert calibrate.main([*words, "--engine", "onnxruntime", *RATES]) == 0
    calibration = read_bundle(built / "bundle").calibration
    assert calibration.good_images == CALIBRATION
    require_stated(calibration, *judged)
