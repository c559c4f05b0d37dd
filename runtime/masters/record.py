"""Checks of master parts in the audit log of a bundle."""

from __future__ import annotations

import fcntl
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.audit.entry import MASTERS, Entry
from flawline.runtime.audit.log import AUDIT_LOG, AuditError, last_entry, locked, open_log
from flawline.runtime.console import printable
from flawline.runtime.detector import Detector
from flawline.runtime.masters.check import Masters, MastersResult, check_masters

NAMES_LOGGED = 20


def subject_of(detector: Detector) -> dict[str, Any]:
    """Return what a check of master parts holds for: bundle, engine, precision and thresholds."""
    return {
        "bundle": detector.bundle.short_id,
        "engine": detector.engine.name,
        "precision": detector.engine.precision,
        "threshold": detector.threshold,
        "review_threshold": detector.review_threshold,
    }


def check_and_log(detector: Detector, masters: Masters) -> MastersResult:
    """Judge master parts and append a line about it to the audit log of the bundle.

    Raises AuditError if the line cannot be written, and what `check_masters` raises.
    """
    result = check_masters(detector, masters)
    state = {
        **subject_of(detector),
        "good": result.good,
        "bad": result.bad,
        "passed": result.passed,
        "wrong": [printable(master.source) for master in result.wrong[:NAMES_LOGGED]],
    }
    with open_log(detector.bundle.path / AUDIT_LOG) as log:
        last = log.last(MASTERS)
        log.append(MASTERS, None if last is None else last.new, state, result.describe())
    return result


def last_check(detector: Detector) -> Entry | None:
    """Return the last check in the log that holds for a detector; None if there is none.

    A check of another bundle, engine, precision or threshold does not hold. Raises AuditError.
    """
    path = detector.bundle.path / AUDIT_LOG
    if not path.exists():
        return None
    subject = subject_of(detector)
    try:
        with locked(path, os.O_RDONLY | os.O_CLOEXEC, fcntl.LOCK_SH) as descriptor:
            return last_entry(descriptor, MASTERS, accept=lambda entry: _is_about(entry, subject))
    except OSError as error:
        raise AuditError(
            f"audit log {path}: cannot be read ({reason_of(error)}); {remedy_of(error)}"
        ) from error


def _is_about(entry: Entry, subject: dict[str, Any]) -> bool:
    state = entry.new or {}
    return all(state.get(key) == value for key, value in subject.items())


def age_of(entry: Entry) -> float:
    """Return the seconds since an entry, by the clock of the machine; below 0 if it went back."""
    then = datetime.fromisoformat(entry.time)
    return (datetime.now(timezone.utc) - then).total_seconds()


def signature_of(bundle: Path) -> tuple[int, int] | None:
    """Return what changes with each line of a bundle's audit log; None while there is none."""
    try:
        status = os.stat(bundle / AUDIT_LOG)
    except OSError:
        return None
    return status.st_ino, status.st_size
