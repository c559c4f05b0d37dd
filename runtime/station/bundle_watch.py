"""Another bundle at the path of the one that a stream judges with: noticed, read, and offered.

It may come there by a rename, by a link that leads elsewhere, or file by file. So it is read when
no file changes any more, and a bundle that is not whole yet is waited for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from flawline import FlawlineError
from flawline.runtime.audit.bundle_log import is_logged
from flawline.runtime.bundle import Bundle, BundleError, read_bundle
from flawline.runtime.bundle_files import CALIBRATION, MANIFEST, SIGNATURE
from flawline.runtime.console import describe_failure, first_line
from flawline.runtime.manifest import GOLDEN
from flawline.runtime.precisions import PRECISIONS
from flawline.runtime.station.judge import Exchange, Judge, Outdated

# No file has changed for so many seconds when a bundle is taken without an entry of its audit log,
# because the threshold may be that of the bundle before, and when a damaged one is refused.
UNLOGGED_S = 3.0
DAMAGED_S = 10.0
GRAPHS = tuple(precision.file for precision in PRECISIONS.values() if precision.file is not None)
WATCHED = (MANIFEST, CALIBRATION, SIGNATURE, GOLDEN, *GRAPHS)

Signature = tuple[object, ...]


class WatchedBundle:
    """The path of a bundle, whose files may change at any time.

    What is there when it is created is known already. `reader` is `read_bundle`, or it with keys.
    """

    def __init__(
        self,
        path: Path,
        reader: Callable[[Path], Bundle] = read_bundle,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._reader = reader
        self._clock = clock
        self.signature = signature_of(path)
        # When a file was last seen to change; None if what is there is known.
        self._changed_at: float | None = None
        self._found: Bundle | FlawlineError | None = None

    def read(self) -> Bundle:
        """Read what is there now. Raises FlawlineError."""
        return self._reader(self.path)

    def look(self) -> Bundle | FlawlineError | None:
        """Return the bundle that came to the path, or the error of one that stays damaged.

        Each is returned once. It is None while nothing is new, or what is new may not be complete.
        """
        signature = signature_of(self.path)
        now = self._clock()
        if signature != self.signature:
            self.signature = signature
            self._changed_at = now
            self._found = None
            return None
        if self._changed_at is None:
            return None
        if self._found is None:
            self._found = self._try_to_read()
            # A file that changed while it was read is noticed by the next look, before it counts.
            return self.look()
        if now - self._changed_at < self._patience(self._found):
            return None
        self._changed_at = None
        return self._found

    def _try_to_read(self) -> Bundle | FlawlineError:
        try:
            return self.read()
        except FlawlineError as error:
            return error
        except Exception as error:
            # Whatever is wrong with the files must not end the thread.
            reason = describe_failure(error) or f"{type(error).__name__}: {first_line(error)}"
            return BundleError(f"bundle {self.path}: {reason}; copy it again")

    def _patience(self, found: Bundle | FlawlineError) -> float:
        """Return for how many seconds no file may have changed."""
        if isinstance(found, FlawlineError):
            return DAMAGED_S
        return 0.0 if is_logged(self.path) else UNLOGGED_S


class BundleOffers:
    """Offers each bundle that comes to a watched path to the exchange of a stream.

    `known` is the bundle there that was offered already, if there is one. `opening` opens what
    judges with a bundle, and `refused` is called with the error of one that cannot be used.
    """

    def __init__(
        self,
        watched: WatchedBundle,
        exchange: Exchange,
        known: Bundle | None,
        opening: Callable[[Bundle], Judge],
        refused: Callable[[FlawlineError], None] = lambda error: None,
    ) -> None:
        self._watched = watched
        self._exchange = exchange
        # None as well after a refusal, so that the next change is tried in any case.
        self._known = known
        self._opening = opening
        self._refused = refused

    def look(self) -> None:
        """Look once whether another bundle is there, and offer it."""
        found = self._watched.look()
        if isinstance(found, FlawlineError):
            self._known = None
            self._refused(found)
            self._exchange.refuse(found)
        elif found is not None and (self._known is None or not found.is_same(self._known)):
            bundle = found
            signature = self._watched.signature
            self._known = bundle
            self._exchange.offer(lambda: self._open(bundle, signature))

    def _open(self, bundle: Bundle, signature: Signature) -> Judge:
        """Open what judges with a bundle. Called by the thread of the exchange."""
        try:
            return self._opening(bundle)
        except FlawlineError as error:
            self._known = None
            if signature_of(self._watched.path) != signature:
                # The next look finds out what is there now.
                raise Outdated(str(error)) from error
            self._refused(error)
            raise


def signature_of(path: Path) -> Signature:
    """Return what changes with each change of a bundle's files, and while one is being copied.

    Programs that copy write a file of another name first, which has that of the file in it.
    """
    files = []
    try:
        folder = path.stat()
        with os.scandir(path) as entries:
            for entry in entries:
                if any(name in entry.name for name in WATCHED):
                    files.append((entry.name, _identity(entry.path)))
    except OSError as error:
        return (error.errno,)
    return (folder.st_dev, folder.st_ino, *sorted(files))


def _identity(path: str) -> tuple[int | None, ...]:
    try:
        status = os.stat(path)
    except OSError as error:
        return (error.errno,)
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
