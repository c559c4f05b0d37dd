"""Put a bundle in the place of the one in use, in one step, and bring the one before back.

The bundle that was in use stays next to it, as NAME.previous. A station that reads the bundle while
it is exchanged finds the old one or the new one.
"""

from __future__ import annotations

import os
from pathlib import Path

from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.audit.bundle_log import bundle_state, replaced_bundle
from flawline.runtime.audit.log import AUDIT_LOG
from flawline.runtime.bundle import read_bundle
from flawline.runtime.bundle_files import (
    LARGEST_JSON,
    SIGNATURE,
    BundleError,
    may_be_replaced,
    require_bundle_folder,
)
from flawline.runtime.files import copy_folder, read_small, synchronise_folder
from flawline.runtime.provenance import how_taught

PREVIOUS = ".previous"


def previous_of(path: Path) -> Path:
    """Return where the bundle is kept that was in the place of `path` before."""
    path = path.resolve()
    return path.with_name(path.name + PREVIOUS)


def install_bundle(path: Path, new: Path, note: str | None = None) -> str:
    """Put a copy of a bundle in the place of another one, and return a line that says so.

    The new bundle continues the audit log of the one that it replaces, which is kept for
    `undo_install`; the one that was kept before is removed. Where the same bundle is in place
    already, nothing is changed. The line of the log says from what the new bundle was taught, after
    the `note`. Raises BundleError and AuditError.
    """
    taught = how_taught(read_bundle(new).manifest.provenance)
    note = "; ".join(text for text in (note, taught) if text) or None
    require_bundle_folder(path)
    previous = previous_of(path)
    if new.resolve() in (path.resolve(), previous):
        raise BundleError(f"{new} is the bundle in use, or the one before it; give another")
    if not may_be_replaced(previous):
        raise BundleError(
            f"{previous} is no bundle, and the one in use would be kept there; move it away"
        )
    if not _is_same(path, new):
        _put(path, new, "install", note, previous)
    elif _is_whole(path) and _signature(path) == _signature(new):
        return f"{path} is a copy of {new} already; nothing is changed"
    else:
        # The same bundle again, damaged or with another signature, is none to go back to.
        _put(path, new, "install", note, None)
    return f"{path} is a copy of {new} now; {_undo_line(previous)}"


def _undo_line(previous: Path) -> str:
    if previous.is_dir():
        return "--undo brings the bundle before it back"
    return "there is no bundle before it"


def _is_same(path: Path, new: Path) -> bool:
    """Whether two bundles have the same manifest, with the hashes of graphs, and thresholds."""
    try:
        return bundle_state(path) == bundle_state(new)
    except OSError:
        return False


def _is_whole(path: Path) -> bool:
    try:
        read_bundle(path)
    except BundleError:
        return False
    return True


def _signature(path: Path) -> bytes | None:
    try:
        return read_small(path / SIGNATURE, LARGEST_JSON)
    except OSError:
        return None


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
    _put(path, previous, "undo", note, previous)
    return f"{path} is the bundle before it again; --undo once more brings the newer one back"


def _put(path: Path, content: Path, what: str, note: str | None, keep: Path | None) -> None:
    """Put a copy of a bundle at `path`, and keep the one that was there, unless `keep` is None."""
    try:
        with replaced_bundle(path.resolve(), what, keep, note) as new:
            # The log is that of the place, and continued.
            copy_folder(content, new, (AUDIT_LOG,))
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
