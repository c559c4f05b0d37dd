"""The threshold of a new bundle from the scores of a lossy engine that was asked for by name."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from flawline.export.frame_scores import FrameScores, score_prepared_frames
from flawline.export.good_scores import out_of_fold_scores, scores_of_mosaics
from flawline.export.selection import select_images
from flawline.runtime.bundle import Bundle, read_bundle, write_calibration
from flawline.runtime.console import log
from flawline.runtime.drift.reference import range_of
from flawline.runtime.engines import EngineOptions, open_engine, open_reference
from flawline.runtime.good_images.scores import GoodScores
from flawline.runtime.manifest import Manifest
from flawline.runtime.scored_by import scored_by
from flawline.runtime.threshold import Rates
from flawline.train.checkpoint import Checkpoint
from flawline.train.data import PreparedImages
from flawline.train.progress import Bars


def set_own_threshold(
    bundle: Bundle,
    checkpoint: Checkpoint,
    data: Path,
    engine: str,
    options: EngineOptions,
    rates: Rates,
) -> Bundle:
    """Replace the threshold of a new bundle by one from the scores of an engine; return the bundle.

    The images are those that set the first threshold. If they were held out, the engine scores
    them. Out-of-fold scores are of other detectors, which no engine has; to each of them is added
    what the engine changes about the exported detector's score of the same image. The largest
    values of the maps are treated in the same way.

    Args:
        bundle: a bundle that was built from the checkpoint, with a graph for the precision.
        checkpoint: the trained detector.
        data: the data set that it was trained on.
        engine: an engine of ENGINES that can be used on this machine.
        options: how it is opened, with a lossy precision.
        rates: shares of good parts that may be rejected, and reviewed.

    Raises EngineError, BundleError, DataError and CalibrationError.
    """
    good, images = _good_images(checkpoint, data, bundle.manifest)
    graph_input = bundle.manifest.graph_input
    with Bars() as bars:
        with closing(open_engine(bundle, engine, options)) as opened:
            own = _own_scores(images, score_prepared_frames(opened, images, graph_input, bars))
        if good is not None:
            with closing(open_reference(bundle.model(), bundle.map_size)) as reference:
                found = score_prepared_frames(reference, images, graph_input, bars)
            expected = _own_scores(images, found)
            own = GoodScores(
                images.paths,
                good.scores + (own.scores - expected.scores),
                good.peaks + (own.peaks - expected.peaks),
                good.out_of_fold,
            )
    log(f"the threshold is set again, with the scores of {opened.name} {opened.precision}")
    scored = scored_by(opened.name, opened.precision)
    calibration = own.calibrate(rates, bundle.manifest)
    write_calibration(bundle, replace(calibration, scored_by=scored, scores=range_of(own.scores)))
    return read_bundle(bundle.path)


def _own_scores(images: PreparedImages, found: FrameScores) -> GoodScores:
    """Return the scores and the largest values of the maps in float64, for their differences."""
    scores = found.scores.astype(np.float64)
    return GoodScores(images.paths, scores, found.peaks.astype(np.float64))


def _good_images(
    checkpoint: Checkpoint, data: Path, manifest: Manifest
) -> tuple[GoodScores | None, PreparedImages]:
    """Return the images that set the threshold, and their out-of-fold scores if there are any."""
    bit_depth = manifest.file_bit_depth
    selection = select_images(
        data, manifest.graph_input, bit_depth, manifest.folds, excluded=manifest.excluded_images
    )
    good = None
    paths = list(selection.good)
    if checkpoint.out_of_fold is not None:
        good = out_of_fold_scores(checkpoint.out_of_fold, selection.train.paths)
        good = scores_of_mosaics(good, checkpoint.method, selection)
        paths = list(good.paths)
    convert = manifest.graph_input.of_image
    return good, PreparedImages(paths, manifest.graph_input.frame_geometry, bit_depth, convert)
