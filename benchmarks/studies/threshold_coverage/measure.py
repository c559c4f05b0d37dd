"""Realised false-alarm rates of thresholds that are set from part of the good images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flawline.cameras import open_camera
from flawline.runtime.bundle import read_bundle
from flawline.runtime.detector import Detector
from flawline.runtime.good_parts import score_frames
from flawline.runtime.threshold import set_threshold

# Number of random divisions of the images into those that set the threshold and those that test it.
RESAMPLINGS = 200


@dataclass(frozen=True)
class Coverage:
    """Realised rates [resamplings], and the share of them within the interval stated with each."""

    rates: NDArray[np.float64]
    inside_interval: float

    def percentiles(self, low: float, high: float) -> tuple[float, float]:
        """Return two percentiles of the realised rates."""
        first, second = np.percentile(self.rates, (low, high)).tolist()
        return first, second


def score_folders(bundle: Path, folders: Sequence[str]) -> NDArray[np.float64]:
    """Return the scores [n] of all images in the folders. Raises the errors of the runtime."""
    scores: list[float] = []
    with Detector(read_bundle(bundle)) as detector:
        for folder in folders:
            with open_camera(folder) as camera:
                scores += score_frames(detector, camera).scores.tolist()
    return np.array(scores)


def realised_rates(
    scores: NDArray[np.float64],
    false_alarm_rate: float,
    count: int,
    resamplings: int,
    seed: int = 0,
) -> Coverage:
    """Set a threshold from `count` random scores and test it on the others, `resamplings` times.

    Raises CalibrationError when `count` scores cannot set a threshold of this false-alarm rate.
    """
    rng = np.random.default_rng(seed)
    rates = []
    inside = 0
    for _ in range(resamplings):
        order = rng.permutation(len(scores))
        calibration = set_threshold(scores[order[:count]], false_alarm_rate)
        false_alarms = scores[order[count:]] > calibration.threshold
        rate = float(false_alarms.mean())
        low, high = calibration.interval
        if low <= rate <= high:
            inside += 1
        rates.append(rate)
    return Coverage(np.array(rates), inside / resamplings)
