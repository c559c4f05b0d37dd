"""The scores of good images that set the threshold of a bundle, and what they are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.runtime.calibration import Calibration
from flawline.runtime.console import log, log_notes
from flawline.runtime.good_images import DataError
from flawline.runtime.good_images.neighbours import describe_held_out, describe_neighbours
from flawline.runtime.good_images.out_of_fold import OutOfFold
from flawline.runtime.manifest import GRAPH_OUTPUTS, Manifest
from flawline.runtime.threshold import (
    HELD_OUT,
    Rates,
    describe,
    require_different_scores,
    set_threshold,
    with_pixel_threshold,
)

GOOD = "good images"


@dataclass(frozen=True)
class GoodScores:
    """Scores of good images from detectors that were not trained on them.

    Attributes:
        paths: the n images.
        scores: float [n].
        peaks: the largest values of their maps, float [n]; 0 in a method without map.
        out_of_fold: the record that the scores are from; None if the images were held out, and the
            exported graph scored them.
    """

    paths: Sequence[Path]
    scores: npt.NDArray[Any]
    peaks: npt.NDArray[Any]
    out_of_fold: OutOfFold | None = None

    @property
    def folds(self) -> int:
        """The number of detectors that gave the scores; 0 for the exported one."""
        if self.out_of_fold is None:
            return 0
        return self.out_of_fold.count

    @property
    def called(self) -> str:
        """How messages call the images."""
        if self.out_of_fold is None:
            return HELD_OUT
        return GOOD

    def calibrate(self, rates: Rates, manifest: Manifest) -> Calibration:
        """Set the thresholds of scores and maps, and log what supports them.

        Their margins are the tolerances of the manifest. A bundle without maps has no pixel
        threshold. Raises CalibrationError if the images are too few, or if their scores are all
        equal within the tolerance.
        """
        tolerance = manifest.score_tolerance
        require_different_scores(self.scores, tolerance, self.called)
        calibration = set_threshold(
            self.scores, rates.false_alarm, tolerance, self.called, self.folds, rates.review
        )
        if manifest.outputs == GRAPH_OUTPUTS:
            calibration = with_pixel_threshold(calibration, self.peaks, manifest.map_tolerance)
        for line in describe(calibration, rates.false_alarm, self.called):
            log(line)
        # A defective part among the good ones would raise the threshold: show where to look.
        suspect = int(np.argmax(self.scores))
        log(
            f"highest-scoring of them: {self.scores[suspect]:.6g} {self.paths[suspect]}; a "
            f"defective part among the good ones would have the highest score"
        )
        log_notes(self._describe_doubts())
        return calibration

    def _describe_doubts(self) -> list[str]:
        if self.out_of_fold is None:
            return describe_held_out(self.paths, self.scores)
        return describe_neighbours(self.out_of_fold)


def note_copies(images: int, used: int) -> None:
    """Log how many images are copies; raise DataError if no image is left."""
    if used == 0:
        raise DataError(
            f"each of the {images} good images has a copy in another fold, so that its score sets "
            f"no threshold; remove the copies and train again"
        )
    if used < images:
        log(
            f"note: {images - used} of {images} good images are copies of others and set no "
            f"threshold; {used} remain"
        )
