"""The notes of the bundle report: limits of its numbers, and warnings about the threshold."""

from __future__ import annotations

import numpy as np

from flawline.benchmarks.bundle_report.findings import Findings, scores_of
from flawline.benchmarks.bundle_report.formatting import number, percent, percent_range
from flawline.runtime.bundle import Bundle
from flawline.runtime.calibration import Calibration
from flawline.runtime.conformal import CONFIDENCE
from flawline.runtime.manifest import Manifest
from flawline.runtime.threshold import CalibrationError, set_threshold
from flawline.train.metrics import Scores


def notes(findings: Findings) -> list[str]:
    """Return the notes, one sentence each.

    They are about an unfinished training, uninspected areas, absent maps or masks, and the
    threshold.
    """
    sentences = []
    cut_short = findings.bundle.manifest.cut_short
    if cut_short is not None:
        sentences.append(
            f"The training was cut short after {cut_short}: a finished one may decide otherwise."
        )
    for loss in findings.uninspected:
        sentences.append(f"{loss[0].upper()}{loss[1:]}.")
    for note in findings.data_notes:
        sentences.append(f"{note[0].upper()}{note[1:]}.")
    if not findings.bundle.has_map:
        sentences.append(
            "The bundle was built for the score alone and has no anomaly maps: "
            "they are neither shown nor measured."
        )
    elif findings.defective and not findings.pixel_accuracy:
        sentences.append(
            "There are no masks: whether the anomaly map marks the right place is not measured."
        )
    return sentences + calibration_warnings(findings)


def calibration_warnings(findings: Findings) -> list[str]:
    """Return where calibration.json, which may be edited, is inconsistent with the images."""
    calibration = findings.bundle.calibration
    warnings = []
    try:
        # The interval depends on the number of images only, not on their scores.
        any_scores = np.arange(calibration.good_images)
        expected = set_threshold(
            any_scores, calibration.false_alarm_rate, folds=calibration.folds
        ).interval
    except CalibrationError as error:
        return [f"The calibration is not valid: {error}."]
    if not np.allclose(expected, calibration.interval, rtol=0, atol=1e-3):
        warnings.append(_interval_warning(calibration, expected))
    by_hand = calibration.by_hand
    if by_hand is not None:
        warnings.append(
            f"The threshold was moved by hand, from {number(by_hand.threshold)} by "
            f"{by_hand.person}: the stated rate is that of the one before."
        )
        return warnings
    if set_from_good_test(findings):
        return [
            *warnings,
            "The threshold was set from the good test images: how many of them are false alarms "
            "follows from the stated rate, and is no independent check.",
        ]
    held_out = scores_of(findings.held_out)
    warnings += _threshold_warnings(findings.bundle.manifest, calibration, held_out)
    return warnings


def _interval_warning(calibration: Calibration, expected: tuple[float, float]) -> str:
    return (
        f"The calibration states the interval {percent_range(calibration.interval)}; that of "
        f"{calibration.good_images} images with {percent(CONFIDENCE)} confidence is "
        f"{percent_range(expected)}: another version wrote it, or it was edited."
    )


def _threshold_warnings(
    manifest: Manifest, calibration: Calibration, held_out: Scores
) -> list[str]:
    if calibration.folds:
        # It comes from scores that are in the checkpoint alone.
        return []
    if not _same_images(manifest, calibration, held_out):
        return [
            "The threshold was not set from the held-out good images of this data set, "
            "but from other images."
        ]
    rate = calibration.false_alarm_rate
    if _gives_threshold(manifest, calibration, held_out):
        return []
    recalibrated = set_threshold(held_out, rate).threshold
    return [
        f"The held-out good images of this data set give the threshold {number(recalibrated)} for "
        f"{percent(rate)}: the one in use was set from other images, or it was changed by hand. "
        "In the latter case the stated false-alarm rate does not apply to it."
    ]


def set_from_held_out(findings: Findings) -> bool:
    """Whether the threshold in use is the one that the held-out images of this data set give."""
    bundle = findings.bundle
    held_out = scores_of(findings.held_out)
    if not _same_images(bundle.manifest, bundle.calibration, held_out):
        return False
    return _set_from(bundle, held_out)


def set_from_good_test(findings: Findings) -> bool:
    """Whether the threshold in use is the one that the good test images give."""
    return _set_from(findings.bundle, scores_of(findings.good))


def _set_from(bundle: Bundle, scores: Scores) -> bool:
    calibration = bundle.calibration
    if not len(scores) or len(scores) != calibration.good_images:
        return False
    try:
        return _gives_threshold(bundle.manifest, calibration, scores)
    except CalibrationError:
        # The rate in calibration.json was edited to one that the images do not support.
        return False


def _gives_threshold(manifest: Manifest, calibration: Calibration, scores: Scores) -> bool:
    """Whether the scores [n] of good images give the threshold. Raises CalibrationError."""
    rate = calibration.false_alarm_rate
    tolerance = manifest.score_tolerance
    lowest = set_threshold(scores, rate).threshold
    # `runtime.calibrate` keeps a margin, and engines differ by rounding.
    highest = set_threshold(scores, rate, tolerance).threshold
    return lowest - tolerance <= calibration.threshold <= highest + tolerance


def _same_images(manifest: Manifest, calibration: Calibration, held_out: Scores) -> bool:
    """Whether the held-out scores [n] are those that the bundle was built with."""
    if not len(held_out) or len(held_out) != calibration.good_images:
        return False
    ends = (held_out.min(), held_out.max())
    stated = (manifest.score.min, manifest.score.max)
    return np.allclose(ends, stated, rtol=0, atol=manifest.score_tolerance)
