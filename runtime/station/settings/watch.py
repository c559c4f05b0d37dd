"""Watching a station file and its bundle while a stream runs, and opening what has changed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from flawline import FlawlineError
from flawline.runtime.audit.bundle_log import warn_of_outside_change
from flawline.runtime.audit.log import AuditError, open_log
from flawline.runtime.bundle import Bundle
from flawline.runtime.console import warn
from flawline.runtime.station.bundle_watch import BundleOffers, WatchedBundle
from flawline.runtime.station.judge import Exchange, Judge
from flawline.runtime.station.settings.opening import REFUSED, bundle_reader, open_judge
from flawline.runtime.station.settings.schema import StationFile
from flawline.runtime.station.settings.station_file import Station, StationError, read_station
from flawline.runtime.station.setup import Check

# What the judge is opened with besides its recipe, and what takes a start.
JUDGE_KEYS = ("engine", "accept_size", "reject_after", "trusted_keys")
START_KEYS = (
    "cameras",
    "batch",
    "batch_wait_ms",
    "same_part",
    "part_wait_s",
    "outputs",
)

# Changes with each change of the file; None while there is no such file.
Signature = tuple[int, int, int] | None


class StationWatch:
    """Looks at a station file and at the bundle of its recipe, and offers changes to the stream.

    A file or a bundle that cannot be used is refused with a warning, and the stream continues with
    what it has. `check` is as of `open_judge`, `watched` the path of the bundle that judges, and
    `keys` as of `bundle_reader`.
    """

    def __init__(
        self,
        station: Station,
        exchange: Exchange,
        check: Check,
        watched: WatchedBundle,
        keys: Sequence[Path] = (),
    ) -> None:
        self._station = station
        self._exchange = exchange
        self._check = check
        self._keys = keys
        # The file may have changed since it was read, so that the first signature is not its.
        self._read_signature: Signature = (0, 0, 0)
        self._seen: Signature = (0, 0, 0)
        self._offers = self._watch_bundle(watched, exchange.now.detector.bundle)

    def look(self) -> None:
        """Look once at the file and at the bundle."""
        found = _signature(self._station)
        # An editor may still be writing a file that has just changed.
        if found == self._seen and found != self._read_signature:
            self._read_signature = found
            self._read()
        self._seen = found
        if not self._station.content.keep_bundle:
            self._offers.look()

    def _read(self) -> None:
        try:
            station = read_station(self._station.path)
        except StationError as error:
            warn(f"{error}; inspection continues with the station file as it was")
            return
        if station.text != self._station.text:
            old = self._station
            self._station = station
            self._compare(old.content, station)

    def _compare(self, old: StationFile, station: Station) -> None:
        """Offer the recipe if it is another, and say what takes a start."""
        new = station.content
        changed = []
        for key in START_KEYS:
            if getattr(old, key) != getattr(new, key):
                changed.append(key)
        if changed:
            warn(
                f"{station.path}: {', '.join(changed)} changed; start the stream again for that to "
                f"take effect"
            )
        if _judged_with(old) != _judged_with(new):
            # Its path is watched from before it is read.
            path = station.bundle_of(station.recipe)
            watched = WatchedBundle(path, bundle_reader(station, self._keys))
            self._offers = self._watch_bundle(watched, None)
            self._exchange.offer(partial(self._open_recipe, station, watched))

    def _watch_bundle(self, watched: WatchedBundle, known: Bundle | None) -> BundleOffers:
        station = self._station
        opening = partial(self._open, station)
        return BundleOffers(watched, self._exchange, known, opening, partial(_log_refusal, station))

    def _open_recipe(self, station: Station, watched: WatchedBundle) -> Judge:
        try:
            return self._open(station, watched.read())
        except FlawlineError as error:
            _log_refusal(station, error)
            raise

    def _open(self, station: Station, bundle: Bundle) -> Judge:
        judge = open_judge(station, self._check, bundle, running=True)
        warn_of_outside_change(judge.detector.bundle.path)
        return judge


def _log_refusal(station: Station, error: FlawlineError) -> None:
    with suppress(AuditError), open_log(station.audit_log) as log:
        log.append(REFUSED, None, {"recipe": station.recipe.name}, str(error))


def _judged_with(content: StationFile) -> list[object]:
    """Return the part of a station file that its judge is opened with."""
    recipe = next(recipe for recipe in content.recipes if recipe.name == content.recipe)
    return [recipe, *(getattr(content, key) for key in JUDGE_KEYS)]


def _signature(station: Station) -> Signature:
    try:
        status = os.stat(station.path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
