"""Watching a station file while its stream runs: a change is opened in the background."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from functools import partial

from flawline import FlawlineError
from flawline.runtime.audit.bundle_log import warn_of_outside_change
from flawline.runtime.audit.log import AuditError, open_log
from flawline.runtime.console import warn
from flawline.runtime.station.judge import Exchange, Judge
from flawline.runtime.station.settings.opening import REFUSED, open_judge
from flawline.runtime.station.settings.schema import StationFile
from flawline.runtime.station.settings.station_file import Station, StationError, read_station
from flawline.runtime.station.setup import Check

POLL_S = 0.2
# What the judge is opened with besides its recipe, and what takes a start.
JUDGE_KEYS = ("engine", "accept_size", "reject_after")
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
    """Looks at a station file in a thread, and offers the recipe that it names to the stream.

    A file that cannot be used is refused with a warning, and the stream continues with what it has.
    `check` is as of `open_judge`. Use it as a context manager, or close it.
    """

    def __init__(self, station: Station, exchange: Exchange, check: Check) -> None:
        self._station = station
        self._exchange = exchange
        self._check = check
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="station file", daemon=True)

    def __enter__(self) -> StationWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread. May be called again."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        # The file may have changed since it was read, so that the first signature is not its.
        read: Signature = (0, 0, 0)
        seen: Signature = (0, 0, 0)
        while not self._closed.wait(POLL_S):
            found = _signature(self._station)
            # An editor may still be writing a file that has just changed.
            if found == seen and found != read:
                read = found
                self._read()
            seen = found

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
            self._exchange.offer(partial(self._open, station))

    def _open(self, station: Station) -> Judge:
        try:
            judge = open_judge(station, self._check)
        except FlawlineError as error:
            with suppress(AuditError), open_log(station.audit_log) as log:
                log.append(REFUSED, None, {"recipe": station.recipe.name}, str(error))
            raise
        warn_of_outside_change(judge.detector.bundle.path)
        return judge


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
