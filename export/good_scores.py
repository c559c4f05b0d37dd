"""The scores of good images that set the threshold of a bundle, and what they are worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.export.parity import ScoresAndMaps
from flawline.runtime.calibration import Calibration
from flawline.runtime.console import log, log_notes
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.manifest import GRAPH_OUTPUTS, Manifest
from flawline.runtime.threshold import (
    HELD_OUT,
    Rates,
    check_rates,
    describe,
    require_different_scores,
    set_threshold,
    with_pixel_threshold,
)
from flawline.train.data import DataError, hold_out, open_data
from flawline.train.data.folds import blocks, choose_folds
from flawline.train.data.split import content_hashes, without_copies
from flawline.train.judging import map_peaks
from flawline.train.neighbours import describe_held_out, describe_neighbours
from flawline.train.out_of_fold import (
    OutOfFold,
    independent_images,
    independent_of,
    match_images,
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


def held_out_scores(
    paths: Sequence[Path],
    results: ScoresAndMaps,
    reference: ScoresAndMaps,
    graph_input: GraphInput,
) -> GoodScores:
    """Return the scores of the held-out images, which come first in the results of the graph.

    The scores are those of the graph, because that is what runs. It may give no maps, so that these
    are the torch reference's.
    """
    count = len(paths)
    maps = [graph_input.suppressed(anomaly_map) for anomaly_map in reference.maps[:count]]
    return GoodScores(paths, results.scores[:count], map_peaks(np.array(maps)))


def out_of_fold_scores(record: OutOfFold, paths: Sequence[Path]) -> GoodScores:
    """Return the out-of-fold scores of a training for the good images of a data set.

    Copies are left out as `independent_images` says, which is logged. Raises DataError if these are
    not the images of the training, or if all have copies in other folds.
    """
    found = content_hashes(paths)
    places = match_images(record.images, found)
    if places is None:
        raise _other_images(record, paths, found)
    independent = set(independent_images(record))
    chosen = [number for number, place in enumerate(places) if place in independent]
    _note_copies(len(paths), len(chosen))
    indices = [places[number] for number in chosen]
    return GoodScores(
        paths=[paths[number] for number in chosen],
        scores=record.scores()[indices],
        peaks=record.peaks()[indices],
        out_of_fold=record,
    )


def _other_images(record: OutOfFold, paths: Sequence[Path], found: Sequence[str]) -> DataError:
    """Return the error about images that are not those of the training.

    found: content hashes of the images in `paths`. A content counts as often as it occurs.
    """
    missing = Counter(record.images)
    new = []
    for path, content in zip(paths, found, strict=True):
        if missing[content]:
            missing[content] -= 1
        else:
            new.append(path)
    example = f", such as {new[0]}" if new else ""
    return DataError(
        f"the good images are not the {len(record.images)} that the detector was trained on "
        f"({len(new)} are new, or copies{example}; {missing.total()} are missing), so that its "
        f"scores of them set no threshold; train again on this data set, or give the one of the "
        f"training with --data"
    )


def _note_copies(images: int, used: int) -> None:
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


def require_rate(rates: Rates, selected: Sequence[Path], known: GoodScores | None) -> None:
    """Check, before the work begins, that there are enough images for the rates.

    known: scores that exist before the export; without them, those of `selected` will be used.
    """
    if known is None:
        check_rates(rates, len(selected))
    else:
        check_rates(rates, len(known.paths), known.called)


def require_rate_of_training(rates: Rates, data: Path, folds: int | None) -> None:
    """Check, before a training, that its good images will be enough for the rates.

    folds: as of `Recipe`. Raises CalibrationError, and DataError for data that cannot be used.
    """
    images = open_data(data).train_good
    count = choose_folds(folds, len(images))
    if count == 0:
        training, held_out = hold_out(images)
        check_rates(rates, len(without_copies(held_out, training)))
        return
    chosen = independent_of(content_hashes(images), blocks(images, count))
    # Without any, the training names the copies.
    if chosen:
        check_rates(rates, len(chosen), GOOD)
