"""The recipes of a station file: listing them, and changing the one in use."""

from __future__ import annotations

import json
import time
from pathlib import Path

from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.audit.entry import Entry
from flawline.runtime.audit.log import open_log
from flawline.runtime.files import write_atomically
from flawline.runtime.signals import uninterrupted
from flawline.runtime.station.settings.opening import (
    IN_USE,
    READY,
    REFUSED,
    bundle_reader,
    check_recipe,
)
from flawline.runtime.station.settings.places import span_of
from flawline.runtime.station.settings.station_file import Station, StationError, read_station

PAUSE_S = 0.1  # seconds between two looks at the log


def list_recipes(path: Path) -> list[str]:
    """Return a line for each recipe, marked if it is in use. Raises StationError."""
    station = read_station(path)
    lines = []
    for recipe in station.content.recipes:
        mark = "*" if recipe.name == station.content.recipe else " "
        lines.append(f"{mark} {recipe.name}  {recipe.bundle}")
    return lines


def change_recipe(path: Path, name: str, wait_s: float = 0.0) -> str:
    """Write the name of the recipe in use into a station file; return a line that says so.

    The rest of the file stays as it is, and the audit log gets a line. What the file and the bundle
    show is checked before; the self-test is made by the stream, which has the engine. With `wait_s`
    it is waited for so many seconds until a stream has the recipe ready. Raises StationError, also
    if the stream refuses the recipe or none answers, BundleError and AuditError.
    """
    station = read_station(path)
    recipe = station.recipe_named(name)
    check_recipe(station, recipe, bundle_reader(station)(station.bundle_of(recipe)))
    with open_log(station.audit_log) as log:
        # Another process may have changed it.
        station = read_station(path)
        station.recipe_named(name)
        old = station.content.recipe
        if old == name:
            return f"{path}: recipe {name} is the one in the file already"
        states = ({"recipe": old}, {"recipe": name})
        before = log.last(READY, IN_USE, REFUSED)
        with uninterrupted(), log.change("recipe", *states, lambda: _state(path)):
            _write(station, name)
    changed = f"{path}: recipe {name} in place of {old}"
    if wait_s > 0:
        _wait(station, name, before, wait_s)
        return f"{changed}, and the stream judges with it from the next part on"
    return f"{changed}; a stream that runs with this file takes it over when it has opened it"


def _wait(station: Station, name: str, before: Entry | None, seconds: float) -> None:
    """Wait for the entry of a stream after `before`. Raises StationError and AuditError."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        with open_log(station.audit_log) as log:
            answer = log.last(READY, IN_USE, REFUSED)
        if answer is not None and answer != before and (answer.new or {}).get("recipe") == name:
            if answer.what == REFUSED:
                raise StationError(f"recipe {name} was refused by the stream: {answer.note}")
            return
        time.sleep(PAUSE_S)
    raise StationError(
        f"{station.path} names recipe {name} now, but no stream had it ready within {seconds:g} s; "
        f"start one, or wait longer for an engine that is compiled"
    )


def _write(station: Station, name: str) -> None:
    start, end = span_of(station.text, ("recipe",))
    text = station.text[:start] + json.dumps(name) + station.text[end:]
    # A link stays one.
    path = station.path.resolve()
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise StationError(
            f"{station.path} cannot be written ({reason_of(error)}); {remedy_of(error)}"
        ) from error


def _state(path: Path) -> dict[str, str]:
    return {"recipe": read_station(path).content.recipe}
