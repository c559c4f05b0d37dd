"""The scores of the good images of a data set that set the threshold of a bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from flawline.export.parity import ScoresAndMaps
from flawline.export.selection import ImageSelection
from flawline.runtime.console import log
from flawline.runtime.good_images.folds import blocks, choose_folds
from flawline.runtime.good_images.out_of_fold import (
    OutOfFold,
    independent_images,
    independent_of,
    match_images,
)
from flawline.runtime.good_images.scores import GOOD, GoodScores, note_copies
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.threshold import Rates, check_rates
from flawline.train.data import DataError, hold_out, open_data
from flawline.train.data.images import frames_of
from flawline.train.data.split import content_hashes, without_copies
from flawline.train.judging import evaluate_frames, map_peaks
from flawline.train.method import Method
from flawline.train.progress import Bars


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
    note_copies(len(paths), len(chosen))
    indices = [places[number] for number in chosen]
    return GoodScores(
        paths=[paths[number] for number in chosen],
        scores=record.scores()[indices],
        peaks=record.peaks()[indices],
        out_of_fold=record,
    )


def scores_of_mosaics(good: GoodScores, method: Method, selection: ImageSelection) -> GoodScores:
    """Return out-of-fold scores of images as those of a camera's mosaics, if the graph takes these.

    A mosaic keeps one colour of each pixel, so that its scores are others. The detectors of the
    folds are not stored: to each score is added what the mosaic changes about the score that the
    trained detector gives to the same image. The largest values of the maps are treated in the same
    way. Of any other frame the scores are those of the image.
    """
    taken = selection.graph_input
    if taken.source is None or not taken.source.is_bayer:
        return good
    plain = replace(taken, source=None)
    changes = []
    with Bars() as bars:
        frames = frames_of(good.paths, taken, selection.bit_depth)
        images = frames_of(good.paths, plain, selection.bit_depth)
        of_frames = evaluate_frames(method, frames, taken, bars, "mosaics")
        of_images = evaluate_frames(method, images, plain, bars, "images")
    for found, expected in zip(of_frames, of_images, strict=True):
        changes.append(found.astype(np.float64) - expected)
    log(
        f"out-of-fold scores as mosaics: {changes[0].mean():+.3g} on average, by what the mosaic "
        f"changes about the trained detector's scores"
    )
    return replace(good, scores=good.scores + changes[0], peaks=good.peaks + changes[1])


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


def require_rate(rates: Rates, selected: Sequence[Path], known: GoodScores | None) -> None:
    """Check, before the work begins, that there are enough images for the rates.

    known: scores that exist before the export; without them, those of `selected` will be used.
    """
    if known is None:
        check_rates(rates, len(selected))
    else:
        check_rates(rates, len(known.paths), known.called)


def require_rate_of_training(
    rates: Rates, data: Path, folds: int | None, excluded: Collection[str] = ()
) -> None:
    """Check, before a training, that its good images will be enough for the rates.

    folds, excluded: as of `Recipe`. Raises CalibrationError, and DataError for data that cannot be
    used.
    """
    images = open_data(data, excluded).train_good
    count = choose_folds(folds, len(images))
    if count == 0:
        training, held_out = hold_out(images)
        check_rates(rates, len(without_copies(held_out, training)))
        return
    chosen = independent_of(content_hashes(images), blocks(images, count))
    # Without any, the training names the copies.
    if chosen:
        check_rates(rates, len(chosen), GOOD)
