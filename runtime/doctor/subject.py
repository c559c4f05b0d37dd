"""What the user asked about, as JSON, and what a station file adds to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flawline.runtime.doctor.finding import Finding, ok
from flawline.runtime.doctor.machine import Machine, Subject


def subject_to_json(subject: Subject) -> dict[str, Any]:
    """Return a subject for `subject_from_json`."""
    return {
        "bundle": _text(subject.bundle),
        "cache": _text(subject.cache),
        "folders": [str(folder) for folder in subject.folders],
        "server": subject.server,
        "station": _text(subject.station),
    }


def subject_from_json(values: dict[str, Any]) -> Subject:
    """Return the subject of `subject_to_json`."""
    return Subject(
        _path(values["bundle"]),
        _path(values["cache"]),
        tuple(Path(folder) for folder in values["folders"]),
        values["server"],
        _path(values["station"]),
    )


def completed(subject: Subject) -> Subject:
    """Add what a station file says: bundle, plans, server, and the folder of the audit log.

    Raises StationError for a file that cannot be used.
    """
    if subject.station is None:
        return subject
    # Imported here, because it needs libraries that may be broken.
    from flawline.runtime.station.settings.station_file import read_station

    station = read_station(subject.station.absolute())
    engine = station.content.engine
    cache = None if engine.cache is None else station.folder / engine.cache
    return Subject(
        subject.bundle or station.bundle_of(station.recipe),
        subject.cache or cache,
        (*subject.folders, station.audit_log.parent),
        subject.server or station.recipe.server or engine.server,
        subject.station,
    )


def check_station(machine: Machine, subject: Subject) -> Iterator[Finding]:
    """Read the station file."""
    if subject.station is not None:
        # Raises with what is wrong with it.
        completed(subject)
        yield ok(f"{subject.station} can be used")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
