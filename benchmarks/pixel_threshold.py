"""A threshold of map values from held-out good images, fixed before a test image is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flawline.cameras.decode import read_image
from flawline.runtime.bundle import Bundle
from flawline.runtime.conformal import conformal_level
from flawline.runtime.detector import Detector
from flawline.runtime.engines import EngineError
from flawline.runtime.good_parts import map_peak
from flawline.runtime.manifest import Manifest
from flawline.runtime.threshold import CalibrationError, check_false_alarm_rate
from flawline.runtime.trained_images import content_hash
from flawline.train.data import DataError, DataSet, hold_out
from flawline.train.data.exclusion import without_images
from flawline.train.data.split import without_copies
from flawline.train.progress import Bars

NO_MAP = "the bundle gives no anomaly map"


@dataclass(frozen=True)
class PixelThreshold:
    """A pixel is defective if its map value is above `value`; None with the reason if unknown.

    `images` good images set it, and `rate` is the share of new good images in which at least one
    pixel may be above it. Pixels of one image are not independent, so that a share of pixels would
    have no such meaning.
    """

    value: float | None
    images: int = 0
    rate: float | None = None
    reason: str | None = None


def held_out_images(manifest: Manifest, data_set: DataSet) -> list[Path]:
    """Return the good images of the training's data set that the training held out.

    Copies of other images are left out, as in the export. Raises DataError, saying why, where the
    bundle proves that there are none, or does not prove that these were not trained on.
    """
    if manifest.folds:
        raise DataError(
            "the detector was trained on all good images, and its threshold is from out-of-fold "
            "scores; train with --folds 0"
        )
    if not manifest.trained_images:
        raise DataError(
            "the bundle does not state the images of its training; build it again with this version"
        )
    # The excluded images would move the limit between the two sides.
    good = without_images(data_set, manifest.excluded_images).train_good
    training, held_out = hold_out(good)
    known = set(manifest.trained_images)
    for path in held_out:
        if content_hash(path) in known:
            raise DataError(
                f"{path} would be held out, but was trained on; give the data set of the training"
            )
    return without_copies(held_out, training)


def pixel_threshold(detector: Detector, data_set: DataSet) -> PixelThreshold:
    """Judge the held-out good images, and return the threshold from the largest value of each map.

    It is the conformal quantile of these values for the false-alarm rate of the bundle's own
    threshold, at least the tolerance of a map above the value of its rank. The values are those of
    this detector's engine. Where it is not possible, the value is None, with the reason. Raises
    CameraError for a file that cannot be read, and EngineError for a map that is not finite.
    """
    bundle = detector.bundle
    if not bundle.has_map:
        return PixelThreshold(None, reason=NO_MAP)
    try:
        paths = held_out_images(bundle.manifest, data_set)
        peaks = _map_peaks(detector, paths)
        rate = bundle.calibration.false_alarm_rate
        check_false_alarm_rate(rate, len(peaks))
        level = conformal_level(np.array(peaks), rate, bundle.manifest.map_tolerance)
    except (DataError, CalibrationError) as error:
        return PixelThreshold(None, reason=str(error))
    return PixelThreshold(level.threshold, len(peaks), rate)


def needs_pixel_threshold(bundle: Bundle, data_set: DataSet) -> bool:
    """Whether a pixel threshold is of use: there are maps, and masks to compare them with."""
    return bundle.has_map and any(sample.mask is not None for sample in data_set.test)


def _map_peaks(detector: Detector, paths: Sequence[Path]) -> list[float]:
    bit_depth = detector.bundle.manifest.file_bit_depth
    peaks = []
    with Bars() as progress:
        for index, path in enumerate(paths):
            verdict = detector(read_image(path, bit_depth))
            if verdict.anomaly_map is None:
                raise EngineError(
                    f"{detector.engine.description} cannot judge {path}: {verdict.reason}"
                )
            peak = map_peak(verdict.anomaly_map)
            if not np.isfinite(peak):
                raise EngineError(
                    f"{detector.engine.description}: the map of {path} is not finite; choose "
                    f"another engine or build the bundle again"
                )
            peaks.append(peak)
            progress("held-out good images", index + 1, len(paths))
    return peaks
