"""Bring the threshold back that the last calibration of a bundle replaced."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flawline.runtime.audit.bundle_log import calibration_state, logged_change, manifest_state
from flawline.runtime.bundle_files import (
    CALIBRATION,
    LARGEST_JSON,
    MANIFEST,
    PREVIOUS_CALIBRATION,
    BundleError,
    plausible_calibration,
    read_json,
    require_bundle_folder,
    unwritable,
)
from flawline.runtime.calibration import Calibration
from flawline.runtime.files import read_small, write_atomically
from flawline.runtime.manifest import Manifest, manifest_from_json
from flawline.runtime.strict_json import SchemaError


@dataclass(frozen=True)
class Undone:
    """The threshold that a bundle has after undo, and a line of text that says what happened."""

    calibration: Calibration
    message: str


def undo_calibration(path: Path, note: str | None = None) -> Undone:
    """Exchange the threshold of a bundle with the previous one.

    Undoing again brings the newer one back, if there is one: the current calibration.json may be
    missing or damaged. `note` is added to the line of the audit log. Raises BundleError if there is
    no previous threshold, or if it cannot be read or written, and AuditError.
    """
    require_bundle_folder(path)
    previous = path / PREVIOUS_CALIBRATION
    if not previous.is_file():
        raise BundleError(
            f"bundle {path} has no {PREVIOUS_CALIBRATION}: its threshold was never replaced; "
            f"leave --undo out"
        )
    (manifest, _files), seen = read_json(
        path, MANIFEST, lambda data: (manifest_from_json(data), manifest_state(data))
    )
    calibration = read_json(
        path, PREVIOUS_CALIBRATION, partial(plausible_calibration, manifest=manifest)
    )
    current = path / CALIBRATION
    try:
        content = read_small(previous, LARGEST_JSON)
        # A pipe, a device or a folder that took its place is no threshold.
        replaced = read_small(current, LARGEST_JSON) if current.is_file() else None
        message = _message(path, manifest, replaced, content)
        seen = {**seen, **calibration_state(replaced)}
        with logged_change(path, "undo", calibration_state(content), seen, note):
            write_atomically(current, content)
            if replaced is not None:
                write_atomically(previous, replaced)
    except OSError as error:
        raise unwritable(path, error) from error
    return Undone(calibration, message)


def _message(path: Path, manifest: Manifest, replaced: bytes | None, content: bytes) -> str:
    """Say what undo does with the current file, which holds `replaced`; None if it is missing.

    `content` is that of the previous file.
    """
    current = path / CALIBRATION
    if replaced is None:
        return f"wrote {current}, which was missing: there is no newer threshold to bring back"
    if replaced == content:
        return f"{current} is the previous threshold already: there is no other to bring back"
    try:
        plausible_calibration(replaced, manifest)
    except SchemaError as error:
        return (
            f"wrote {current}, which was damaged ({error}): there is no newer threshold to bring "
            f"back; the damaged file is now {PREVIOUS_CALIBRATION}"
        )
    return f"wrote {current}; --undo again brings the newer threshold back"
