"""python -m benchmarks.calibration: does the threshold deliver the false-alarm rate that it states?

    python -m benchmarks.calibration --bundle B --images good-1/ good-2/ --rate 0.05

Scores good images that the detector was not trained on, then again and again sets the threshold from some of them and
counts the false alarms among the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flawline.cameras import CameraError
from flawline.runtime.bundle import BundleError, read_bundle
from flawline.runtime.calibrate import score_frames
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError
from flawline.runtime.threshold import CONFIDENCE, CalibrationError, set_threshold


def resample(
    scores: Any, rate: float, count: int, resamplings: int, seed: int = 0
) -> tuple[Any, float]:
    """Realised false-alarm rates [resamplings], and the share of them that lies in the interval stated with each."""
    rng, rates, inside = np.random.default_rng(seed), [], 0
    for _ in range(resamplings):
        order = rng.permutation(len(scores))
        calibration = set_threshold(scores[order[:count]], rate)
        rates.append(float((scores[order[count:]] > calibration.threshold).mean()))
        inside += calibration.interval[0] <= rates[-1] <= calibration.interval[1]
    return np.array(rates), inside / resamplings


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Realised against stated false-alarm rate.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument(
        "--images", nargs="+", required=True, help="folders of good images not trained on"
    )
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument(
        "--count", type=int, default=100, help="images that set each threshold; default %(default)s"
    )
    parser.add_argument("--resamplings", type=int, default=200)
    args = parser.parse_args(argv)
    try:
        with Detector(read_bundle(args.bundle)) as detector:
            scores = np.concatenate(
                [score_frames(detector, folder, None)[1] for folder in args.images]
            )
        if len(scores) <= args.count:
            raise CalibrationError(
                f"{len(scores)} images leave none to test on; give more, or a smaller --count"
            )
        rates, inside = resample(scores, args.rate, args.count, args.resamplings)
    except (BundleError, EngineError, CameraError, CalibrationError) as error:
        print(f"benchmarks.calibration: {error}", file=sys.stderr)
        return 2
    low, high = np.percentile(rates, (5, 95))
    print(
        f"{len(scores)} good images, {args.count} set each of {args.resamplings} thresholds, the others test it"
    )
    print(
        f"stated {args.rate:.1%}; realised {rates.mean():.1%} on average, {low:.1%} to {high:.1%} in nine of ten"
    )
    print(f"inside the stated {CONFIDENCE:.0%} interval: {inside:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
