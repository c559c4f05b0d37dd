"""Thresholds that a person moves by hand, in place of those that follow from good images."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

from flawline.runtime.bundle import CALIBRATION, PREVIOUS_CALIBRATION, Bundle, write_calibration
from flawline.runtime.bundle_files import parse_json_file, plausible_calibration, read_json
from flawline.runtime.calibration import ByHand, Calibration
from flawline.runtime.console import printable
from flawline.runtime.manifest import Manifest
from flawline.runtime.strict_json import SchemaError
from flawline.runtime.threshold import CalibrationError
from flawline.runtime.undo import undo_calibration

SHORTEST_NAME = 2
LONGEST_NAME = 60
REVISION_DIGITS = 16


def revision_of(path: Path) -> str | None:
    """Return what changes with each change of the thresholds of a bundle; None without a file."""
    try:
        data = (path / CALIBRATION).read_bytes()
    except OSError:
        return None
    return hashlib.sha256(data).hexdigest()[:REVISION_DIGITS]


def read_calibration(path: Path, manifest: Manifest) -> Calibration:
    """Read the thresholds that a bundle has now. Raises BundleError."""
    return read_json(path, CALIBRATION, partial(plausible_calibration, manifest=manifest))


def previous_calibration(path: Path, manifest: Manifest) -> Calibration | None:
    """Return what undoing brings back; None if there is nothing that can be used."""
    try:
        return parse_json_file(
            path, PREVIOUS_CALIBRATION, partial(plausible_calibration, manifest=manifest)
        )
    except SchemaError:
        return None


def move_thresholds(
    bundle: Bundle, threshold: float, review_threshold: float | None, person: str, revision: str
) -> Calibration:
    """Write thresholds that a person chose into a bundle, with a line in its audit log.

    `review_threshold` None leaves the one of the bundle. `revision` is that of the thresholds which
    the person saw. Raises CalibrationError if they have changed since then, for a name that is
    none, and for thresholds that do not fit together, and what `write_calibration` raises.
    """
    note = _note(person, "moved by hand by")
    old = read_calibration(bundle.path, bundle.manifest)
    _require_revision(bundle.path, revision)
    review = old.review
    if review_threshold is not None:
        if review is None:
            raise CalibrationError(
                "the bundle has no review threshold that could be moved; flawline calibrate sets "
                "one with --review-rate"
            )
        review = replace(review, threshold=review_threshold)
    if review is not None and review.threshold > threshold:
        raise CalibrationError(
            f"the review threshold {review.threshold:.6g} is above the one that rejects, "
            f"{threshold:.6g}; move it below"
        )
    by_hand = old.by_hand or ByHand("", old.threshold, old.review_threshold)
    new = replace(old, threshold=threshold, review=review, by_hand=None)
    # Back where they were, they follow from the good images again.
    if (threshold, new.review_threshold) != (by_hand.threshold, by_hand.review_threshold):
        new = replace(new, by_hand=replace(by_hand, person=printable(person.strip())))
    write_calibration(bundle, new, note)
    return new


def undo_by(path: Path, person: str, revision: str) -> Calibration:
    """Bring the previous thresholds of a bundle back, in the name of a person.

    Raises CalibrationError as `move_thresholds` does, BundleError and AuditError.
    """
    note = _note(person, "by")
    _require_revision(path, revision)
    return undo_calibration(path, note).calibration


def _require_revision(path: Path, revision: str) -> None:
    if revision_of(path) != revision:
        raise CalibrationError(
            "the threshold was changed by another person or command meanwhile; look at it again"
        )


def _note(person: str, words: str) -> str:
    """Return what the audit log says. Raises CalibrationError for a name that is none."""
    return f"{words} {name_of(person)}"


def name_of(person: str) -> str:
    """Return the name of a person as a log has it. Raises CalibrationError if it is none."""
    name = person.strip()
    if not SHORTEST_NAME <= len(name) <= LONGEST_NAME or not name.isprintable():
        raise CalibrationError(
            f"the name of the person is {SHORTEST_NAME} to {LONGEST_NAME} characters in one line"
        )
    return printable(name)
