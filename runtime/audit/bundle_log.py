"""The audit log of a bundle, in its folder: what is logged, and changes that bypass it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from flawline.commands import command_line
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.audit.entry import State, changes
from flawline.runtime.audit.log import AUDIT_LOG, AuditError, AuditLog, last_entry, locked, open_log
from flawline.runtime.bundle_files import CALIBRATION, LARGEST_JSON, MANIFEST
from flawline.runtime.console import warn
from flawline.runtime.files import read_small, replace_folder
from flawline.runtime.manifest import MODEL
from flawline.runtime.strict_json import SchemaError, parse_json

OUTSIDE = "outside"
# Keys of a state, each None where the file is missing.
ID = "bundle"
MANIFEST_KEY = "manifest"
ID_DIGITS = 12


def bundle_state(path: Path) -> dict[str, Any] | None:
    """Return what the log says about a bundle; None if its folder is not there.

    It has the identifier, the SHA-256 of the manifest, and the content of calibration.json. Raises
    OSError.
    """
    if not path.exists():
        return None
    return {
        **manifest_state(_content(path / MANIFEST)),
        **calibration_state(_content(path / CALIBRATION)),
    }


def manifest_state(data: bytes | None) -> dict[str, Any]:
    """Return the part of a state that the content of manifest.json gives; None if it is missing."""
    if data is None:
        return {ID: None, MANIFEST_KEY: None}
    files = _parsed(data).get("files")
    model = files.get(MODEL) if isinstance(files, dict) else None
    short_id = model[:ID_DIGITS] if isinstance(model, str) else None
    return {ID: short_id, MANIFEST_KEY: hashlib.sha256(data).hexdigest()}


def calibration_state(data: bytes | None) -> dict[str, Any]:
    """Return the part of a state that the content of calibration.json gives."""
    return {"calibration": None if data is None else _parsed(data)}


def _parsed(data: bytes) -> dict[str, Any]:
    """Return a JSON object; a damaged file is represented by its hash."""
    try:
        return parse_json(data)
    except SchemaError:
        return {"damaged": hashlib.sha256(data).hexdigest()}


def _content(path: Path) -> bytes | None:
    try:
        return read_small(path, LARGEST_JSON)
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextmanager
def logged_change(
    path: Path, what: str, part: State, seen: State, note: str | None = None
) -> Iterator[None]:
    """Change the files of a bundle in the block, after a line of its log says so.

    `part` replaces keys of the state, and `note` is what else the line says. `seen` has the keys of
    the state that the change was made for: another bundle may have come to the path since then, as
    while this process waited for the log. A change that was made outside of the log before gets a
    line of its own. Raises AuditError, and OSError if the state cannot be read.
    """
    with open_log(path / AUDIT_LOG) as log:
        old = bundle_state(path) or {}
        if any(old.get(key) != value for key, value in seen.items()):
            raise AuditError(
                f"bundle {path}: another bundle or threshold came to its folder meanwhile, and "
                f"nothing is changed; look at it, and repeat the command"
            )
        _note_outside(log, old)
        with log.change(what, old, {**old, **part}, lambda: bundle_state(path), note):
            yield


def _note_outside(log: AuditLog, state: State) -> None:
    last = log.last()
    if last is None or last.new == state:
        return
    log.append(OUTSIDE, last.new, state, "found changed outside of the log")
    warn(f"note: {_outside(last.new, state)}; {log.path} has a line about it now")


@contextmanager
def replaced_bundle(
    path: Path, what: str = "build", keep: Path | None = None, note: str | None = None
) -> Iterator[Path]:
    """Give an empty folder for a new bundle, which takes the place of `path` after the block.

    The log of a bundle that is replaced is continued, by a line that calls the change `what` and
    has the `note`. That bundle is moved to `keep`, or removed if that is None. Raises AuditError
    and OSError.
    """
    with ExitStack() as stack:
        old = bundle_state(path)
        log = None
        if (path / AUDIT_LOG).exists():
            # Held until the exchange, so that no line is lost: a writer that waits finds the new
            # file then.
            log = stack.enter_context(open_log(path / AUDIT_LOG))
            _note_outside(log, old or {})
        new = stack.enter_context(replace_folder(path, keep))
        yield new
        if log is not None:
            # Not through memory: a log may be long. The next line waits until all are on disk.
            shutil.copy2(log.path, new / AUDIT_LOG)
        _begin_log(new, what, old, note)


def _begin_log(new: Path, what: str, old: State | None, note: str | None) -> None:
    """Append a line to the log of a bundle that is not in its place yet.

    Raises AuditError and OSError.
    """
    try:
        with open_log(new / AUDIT_LOG) as log:
            log.append(what, old, bundle_state(new), note)
    except AuditError as error:
        # Its message names a folder that is removed. A caller names the place of the bundle.
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise


def require_writable_log(path: Path) -> None:
    """Raise OSError if the log of a bundle is there and cannot be written."""
    log = path / AUDIT_LOG
    if log.exists():
        os.close(os.open(log, os.O_RDWR | os.O_CLOEXEC))


def outside_change(path: Path) -> str | None:
    """Say what was changed in a bundle outside of its log; None for nothing, or without a log.

    Raises AuditError if the log cannot be read.
    """
    log = path / AUDIT_LOG
    if not log.exists():
        return None
    try:
        with locked(log, os.O_RDONLY | os.O_CLOEXEC, fcntl.LOCK_SH) as descriptor:
            last = last_entry(descriptor)
            state = bundle_state(path)
    except OSError as error:
        raise AuditError(
            f"audit log {log}: cannot be read ({reason_of(error)}); {remedy_of(error)}"
        ) from error
    if last is None or last.new == state:
        return None
    return f"{_outside(last.new, state)}; earlier changes: {command_line('audit', log, '--list')}"


def is_logged(path: Path) -> bool:
    """Tell whether the last entry of a bundle's log states the bundle as it is."""
    try:
        return (path / AUDIT_LOG).exists() and outside_change(path) is None
    except (AuditError, OSError):
        return False


def warn_of_outside_change(path: Path) -> None:
    """Print a warning if a bundle was changed outside of its log, or if that is not known."""
    try:
        change = outside_change(path)
    except AuditError as error:
        change = str(error)
    if change is not None:
        warn(f"warning: {change}")


def _outside(logged: State | None, state: State | None) -> str:
    """Describe a change in one line."""
    return f"the bundle was changed outside of its audit log: {', '.join(changes(logged, state))}"
