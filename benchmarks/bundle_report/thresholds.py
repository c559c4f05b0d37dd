"""The table of thresholds of the bundle report: what each would decide, and how to set it."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flawline.benchmarks.bundle_report.findings import Findings, JudgedImage, scores_of
from flawline.benchmarks.bundle_report.kinds import DefectKind, kinds_of
from flawline.cameras.decode import list_images_and_unread
from flawline.cameras.listing import LeftOut
from flawline.commands import program_of
from flawline.runtime.calibration import Calibration
from flawline.runtime.threshold import (
    CalibrationError,
    require_different_scores,
    set_threshold,
    smallest_review_rate,
)
from flawline.runtime.trained_images import TrainedImagesError, require_new_images

RATES = (0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
KINDS = 6  # shown in a row
GOOD_TEST = "good test images"
HELD_OUT = "held-out good images"
OF_THE_TRAINING = "the detector was trained on some of them"
# In a command, a folder of good parts that the user has to name.
GOOD_PARTS = "GOOD_PARTS"
# In a command, folders of this report that are not named.
BUNDLE = "BUNDLE"
DATA = "DATA"


@dataclass(frozen=True)
class Share:
    """How many of some images are above a threshold."""

    count: int
    total: int

    @property
    def fraction(self) -> float:
        return self.count / self.total


@dataclass(frozen=True)
class ThresholdRow:
    """A threshold and what it decides.

    `calibration` is the one that holds the threshold. The shares are None without such images.
    `command` sets the threshold; it is None for the `current` one.
    """

    calibration: Calibration
    current: bool
    good: Share | None
    held_out: Share | None
    detected: Share | None
    kinds: list[DefectKind]
    command: str | None

    @property
    def shown_kinds(self) -> list[DefectKind]:
        """Up to KINDS kinds of defect, those with the smallest share of detections."""
        if len(self.kinds) <= KINDS:
            return self.kinds
        return sorted(self.kinds, key=lambda kind: (kind.share, kind.name))[:KINDS]


@dataclass(frozen=True)
class ThresholdTable:
    """The thresholds in ascending order, and which images they come from.

    `source` names these `images`; it is None if there are none. With `exact` commands, the folder
    in them holds exactly these images. `smallest_rate` is the smallest false-alarm rate that the
    images support. `undo` is the command that brings the previous threshold of the bundle back.
    `refused` says why no threshold can be set from the images.
    """

    rows: list[ThresholdRow]
    source: str | None = None
    images: int = 0
    exact: bool = False
    smallest_rate: float = 1.0
    undo: str = ""
    refused: str | None = None

    @property
    def placeholders(self) -> list[str]:
        """Which words of the commands stand for folders outside of the current one."""
        commands = " ".join(str(row.command) for row in self.rows)
        return [name for name in (BUNDLE, DATA) if name in commands]


def threshold_table(findings: Findings, flags: Sequence[str], exact_scores: bool) -> ThresholdTable:
    """Return the current threshold and those for usual false-alarm rates.

    The good test images set them if they are a folder of their own, because a command can name that
    folder; otherwise the larger group of good images. `flags` choose the engine of this report in
    the commands. `exact_scores` is False if the commands read the images in another way.
    """
    current = _row(findings, findings.bundle.calibration, None)
    folder = _own_folder(findings)
    exact = folder is not None and exact_scores
    source = GOOD_TEST
    images = findings.good
    if not exact and len(findings.held_out) > len(findings.good):
        source = HELD_OUT
        images = findings.held_out
    if not images:
        return ThresholdTable([current])
    try:
        calibrations = _calibrations(findings, images)
    except TrainedImagesError:
        # The message names a path of this machine, and the page goes to others.
        return ThresholdTable([current], source, len(images), refused=OF_THE_TRAINING)
    except CalibrationError as error:
        return ThresholdTable([current], source, len(images), refused=str(error))
    rows = [current]
    tolerance = findings.bundle.manifest.score_tolerance
    for calibration in calibrations:
        if abs(calibration.threshold - findings.threshold) <= tolerance:
            continue
        where = _shown_data(findings, folder) if exact and folder is not None else GOOD_PARTS
        command = _command(findings, where, calibration, flags)
        rows.append(_row(findings, calibration, command))
    rows.sort(key=lambda row: row.calibration.threshold)
    undo = shlex.join([*_calibrate(findings), "--undo"])
    return ThresholdTable(rows, source, len(images), exact, 1 / (len(images) + 1), undo)


def _calibrations(findings: Findings, images: Sequence[JudgedImage]) -> list[Calibration]:
    """Return what `runtime.calibrate` sets from these images, for each rate they support.

    Raises CalibrationError or TrainedImagesError where it would refuse the images.
    """
    paths = [image.sample.path for image in images]
    require_new_images(paths, findings.bundle.manifest.trained_images)
    tolerance = findings.bundle.manifest.score_tolerance
    scores = scores_of(images)
    require_different_scores(scores, tolerance, "good images")
    # As calibrate names the smallest rate that so many images support.
    smallest = math.ceil(1e4 / (len(images) + 1)) / 1e4
    by_threshold = {}
    for rate in (*RATES, smallest):
        if rate >= smallest and rate < 1:
            calibration = set_threshold(scores, rate, tolerance)
            # Several rates may give one threshold; the smallest of them is stated.
            by_threshold[calibration.threshold] = calibration
    return list(by_threshold.values())


def _row(findings: Findings, calibration: Calibration, command: str | None) -> ThresholdRow:
    threshold = calibration.threshold
    return ThresholdRow(
        calibration=calibration,
        current=command is None,
        good=_share(findings.good, threshold),
        held_out=_share(findings.held_out, threshold),
        detected=_share(findings.defective, threshold),
        kinds=kinds_of(findings.defective, threshold),
        command=command,
    )


def _share(images: Sequence[JudgedImage], threshold: float) -> Share | None:
    if not images:
        return None
    return Share(int((scores_of(images) > threshold).sum()), len(images))


def _own_folder(findings: Findings) -> Path | None:
    """Return the folder that holds the good test images and no other image, if there is one."""
    paths = sorted(image.sample.path for image in findings.good)
    if not paths:
        return None
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    if not folder.is_relative_to(findings.data):
        return None
    # What a camera reads from the folder; a file that it cannot read would stop the calibration.
    found = list_images_and_unread(folder, LeftOut())
    return folder if found == paths else None


def _command(
    findings: Findings, images: str, calibration: Calibration, flags: Sequence[str]
) -> str:
    """Return the command that sets the threshold of a calibration, quoted for a shell."""
    rate = calibration.false_alarm_rate
    words = _calibrate(findings)
    words += ["--images", images, "--false-alarm-rate", f"{rate:g}", *flags]
    review = findings.bundle.calibration.review
    smallest = smallest_review_rate(rate, calibration.good_images)
    # Without this flag the command would end the review, and it refuses a rate near the other one.
    if review is not None and smallest is not None and review.rate >= smallest:
        words += ["--review-rate", f"{review.rate:g}"]
    sizes = findings.bundle.manifest.source_sizes
    if sizes is not None and any(sizes.fault(*size) for size in findings.sizes):
        words.append("--accept-size")
    return shlex.join(words)


def _calibrate(findings: Findings) -> list[str]:
    """Return the words that each command starts with."""
    bundle = _shown(findings.bundle.path, BUNDLE)
    return [*program_of("calibrate").split(), "--bundle", bundle]


def _shown_data(findings: Findings, folder: Path) -> str:
    return str(Path(_shown(findings.data, DATA), folder.relative_to(findings.data)))


def _shown(path: Path, placeholder: str) -> str:
    """Return a path as it works in the current folder; a placeholder for one elsewhere.

    The page may be mailed: it names no private folder of this machine.
    """
    if not path.is_absolute():
        return str(path)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return placeholder
