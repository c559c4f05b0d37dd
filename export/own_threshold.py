"""The threshold of a new bundle from the scores of a lossy engine that was asked for by name."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flawline.export.good_scores import GoodScores, out_of_fold_scores
from flawline.export.parity import score_with
from flawline.export.selection import select_images
from flawline.runtime.bundle import Bundle, read_bundle, write_calibration
from flawline.runtime.console import log
from flawline.runtime.engines import EngineOptions, open_engine, open_reference
from flawline.runtime.manifest import Manifest
from flawline.runtime.scored_by import scored_by
from flawline.train.checkpoint import Checkpoint
from flawline.train.data import PreparedImages
from flawline.train.progress import Bars


def set_own_threshold(
    bundle: Bundle,
    checkpoint: Checkpoint,
    data: Path,
    engine: str,
    options: EngineOptions,
    false_alarm_rate: float | None,
) -> Bundle:
    """Replace the threshold of a new bundle by one from the scores of an engine; return the bundle.

    The images are those that set the first threshold. If they were held out, the engine scores
    them. Out-of-fold scores are of other detectors, which no engine has; to each of them is added
    what the engine changes about the exported detector's score of the same image.

    Args:
        bundle: a bundle that was built from the checkpoint, with a graph for the precision.
        checkpoint: the trained detector.
        data: the data set that it was trained on.
        engine: an engine of ENGINES that can be used on this machine.
        options: how it is opened, with a lossy precision.
        false_alarm_rate: share of good parts that may be rejected; None for the default.

    Raises EngineError, BundleError, DataError and CalibrationError.
    """
    good, images = _good_images(checkpoint, data, bundle.manifest)
    with Bars() as bars:
        with closing(open_engine(bundle, engine, options)) as opened:
            scores = score_with(opened, images, bars).scores
        if good is None:
            own: npt.NDArray[np.float64] = scores.astype(np.float64)
        else:
            with closing(open_reference(bundle.model(), bundle.map_size)) as reference:
                expected = score_with(reference, images, bars).scores
            own = good.scores + (scores.astype(np.float64) - expected)
    own_scores = GoodScores(images.paths, own, own, None if good is None else good.out_of_fold)
    log(f"the threshold is set again, with the scores of {opened.name} {opened.precision}")
    calibration = own_scores.calibrate(false_alarm_rate, bundle.manifest.score_tolerance)
    scored = scored_by(opened.name, opened.precision)
    write_calibration(bundle, replace(calibration, scored_by=scored))
    return read_bundle(bundle.path)


def _good_images(
    checkpoint: Checkpoint, data: Path, manifest: Manifest
) -> tuple[GoodScores | None, PreparedImages]:
    """Return the images that set the threshold, and their out-of-fold scores if there are any."""
    bit_depth = manifest.file_bit_depth
    selection = select_images(data, manifest.graph_input, bit_depth, manifest.folds)
    good = None
    paths = list(selection.good)
    if checkpoint.out_of_fold is not None:
        good = out_of_fold_scores(checkpoint.out_of_fold, selection.train.paths)
        paths = list(good.paths)
    convert = manifest.graph_input.of_image
    return good, PreparedImages(paths, manifest.geometry, bit_depth, convert)
