"""Put a bundle in the place of the one in use, in one step, and bring the one before back.

The bundle that was in use stays next to it, as NAME.previous. A station that reads the bundle while
it is exchanged finds the old one or the new one.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.audit.bundle_log import replaced_bundle
from flawline.runtime.audit.log import AUDIT_LOG
from flawline.runtime.bundle import read_bundle
from flawline.runtime.bundle_files import BundleError, require_bundle_folder
from flawline.runtime.files import synchronise_folder

PREVIOUS = ".previous"


def previous_of(path: Path) -> Path:
    """Return where the bundle is kept that was in the place of `path` before."""
    path = path.resolve()
    return path.with_name(path.name + PREVIOUS)


def install_bundle(path: Path, new: Path, note: str | None = None) -> str:
    """Put a copy of a bundle in the place of another one, and return a line that says so.

    The new bundle continues the audit log of the one that it replaces, which is kept for
    `undo_install`; the one that was kept before is removed. `note` is added to the line of the log.
    Raises BundleError and AuditError.
    """
    read_bundle(new)
    require_bundle_folder(path)
    if new.resolve() in (path.resolve(), previous_of(path)):
        raise BundleError(f"{new} is the bundle in use, or the one before it; give another")
    _put(path, new, "install", note)
    return f"{path} is a copy of {new} now; --undo brings the bundle before it back"


def undo_install(path: Path, note: str | None = None) -> str:
    """Exchange a bundle with the one before it, and return a line that says so.

    Undoing again brings the newer one back. `note` is added to the line of the log. Raises
    BundleError, also where there is none, and AuditError.
    """
    require_bundle_folder(path)
    previous = previous_of(path)
    if not previous.is_dir():
        raise BundleError(
            f"bundle {path}: there is no {previous.name} next to it, so that it was never "
            f"replaced; leave --undo out"
        )
    read_bundle(previous)
    _put(path, previous, "undo", note)
    return f"{path} is the bundle before it again; --undo once more brings the newer one back"


def _put(path: Path, content: Path, what: str, note: str | None) -> None:
    """Put a copy of a bundle at `path`, and keep the one that was there."""
    try:
        with replaced_bundle(path.resolve(), what, previous_of(path), note) as new:
            # The log is that of the place, and continued.
            ignored = shutil.ignore_patterns(AUDIT_LOG)
            shutil.copytree(content, new, ignore=ignored, dirs_exist_ok=True)
            _synchronise(new)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be replaced ({reason_of(error)}); {remedy_of(error)}"
        ) from error


def _synchronise(folder: Path) -> None:
    """Wait until the files of a folder are on disk. Raises OSError."""
    for parent, _folders, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(parent) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        synchronise_folder(Path(parent))
