"""A watched folder: its images, and every image that is added to it, each once and complete.

The folder is listed again and again, because the events of the operating system do not tell what
other machines write to a network share.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from flawline.cameras import CameraError
from flawline.cameras.clock import Clock, SystemClock
from flawline.cameras.decode import FileImage, decode_images, is_listed
from flawline.cameras.judged_files import FileStatus, JudgedFiles, entry_key
from flawline.cameras.listing import natural_key, walk_entries
from flawline.cameras.restarts import RestartBudget
from flawline.os_errors import reason_of

DEFAULT_SETTLE_S = 0.5
# Seconds between two listings of a small folder. A large one is listed less often, so that the
# listings take a tenth of the time: to list 100,000 files that are known takes 0.3 s.
PERIOD_S = 0.2
PAUSE_PER_LISTING = 9
# Entries that are looked up together, and known files that are checked for changes in one listing.
CHUNK = 512
CHECKED = 1000
# A network share that is away is tried again for about a minute: nothing is lost meanwhile.
ATTEMPTS = 30
WINDOW_S = 120.0


@dataclass(slots=True)
class Waiting:
    """A file that is read as soon as it has not changed since the time `since` for long enough."""

    key: int
    path: str
    status: FileStatus
    since: float
    present_at_start: bool

    def order(self) -> tuple[Any, ...]:
        """Sort files that were present by path, and then new ones by time and name."""
        if self.present_at_start:
            # The order of `list_files`: that of the names of folders, one after the other.
            return (0, self.path.replace(os.sep, "\0"))
        return (1, self.status.modified_ns, natural_key(self.path))


class FolderWatch:
    """Gives the images of a folder and its subfolders, and waits for more.

    `settle` is the time in seconds for which size and time of a file must not change before it is
    read. `only_new` leaves out the files that are present at the start. `returned` is called when
    the folder is there again after it was away.
    """

    def __init__(
        self,
        root: Path,
        settle: float = DEFAULT_SETTLE_S,
        only_new: bool = False,
        returned: Callable[[], None] = lambda: None,
        clock: Clock | None = None,
    ) -> None:
        self._root = root
        self._settle = settle
        self._only_new = only_new
        self._returned = returned
        self._clock = clock or SystemClock()
        self._changed = threading.Condition()
        self._stopped = False
        self._judged = JudgedFiles()
        self._waiting: dict[str, Waiting] = {}
        self._listings = 0
        self._next_listing = 0.0
        # Only this process is affected, so that nothing has to be spread over time.
        self._budget = RestartBudget(ATTEMPTS, WINDOW_S, jitter=lambda: 0.0)
        self._is_away = False
        self._device = _device_of(root)
        self._mount = _mount_of(root)

    def describe(self) -> str:
        """Say in a phrase which files are given, and when."""
        present = "the images that are present come first"
        if self._only_new:
            present = "the images that are present are left out"
        return f"is watched; {present}, a new one {self._settle:g} s after its last change"

    def stop(self) -> None:
        """End `images` soon. Does not wait; any thread and a signal handler may call it."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def images(self) -> Iterator[FileImage]:
        """Yield the images of each file until `stop` is called, and wait for further files.

        Raises CameraError if the folder cannot be listed for about a minute.
        """
        while not self._stopped:
            if self._clock.monotonic() >= self._next_listing:
                self._list()
            for waiting in self._settled():
                for image in self._read(waiting):
                    if self._stopped:
                        return
                    yield image
                if self._stopped:
                    return
            self._pause()

    def _pause(self) -> None:
        """Wait until something has to be done."""
        due = self._next_listing
        for waiting in self._waiting.values():
            due = min(due, waiting.since + self._settle)
        pause = due - self._clock.monotonic()
        if pause > 0:
            with self._changed:
                self._clock.wait_for(self._changed, lambda: self._stopped, pause)

    def _list(self) -> None:
        """List the folder, and set the time of the next listing."""
        start = self._clock.monotonic()
        try:
            self._require_mount()
            self._find_files(start)
        except OSError as error:
            pause = self._budget.backoff()
            if not self._budget.spend(start):
                raise CameraError(
                    f"camera {self._root}: the folder cannot be listed ({reason_of(error)}); given "
                    f"up after {ATTEMPTS} attempts: check the disk or the network share"
                ) from error
            self._is_away = True
            self._next_listing = start + pause
            return
        if self._is_away:
            self._is_away = False
            self._returned()
        end = self._clock.monotonic()
        pause = PERIOD_S
        # The first listing asks for the status of each file, and says nothing about the next.
        if self._listings > 1:
            pause = max(pause, PAUSE_PER_LISTING * (end - start))
        self._next_listing = end + pause

    def _require_mount(self) -> None:
        """Raise OSError if the share was unmounted, which leaves an empty folder."""
        device = _device_of(self._root)
        if device == self._device:
            return
        mount = _mount_of(self._root)
        if not Path(mount).is_relative_to(self._mount):
            raise OSError(errno.ENODEV, f"nothing is mounted at {self._mount}")
        self._device = device
        self._mount = mount

    def _find_files(self, now: float) -> None:
        """Note the files that are new or changed. Raises OSError if the folder cannot be listed.

        All that are found have the same time, so that they settle together and are read in their
        order: that of the end, because to look at many takes longer than a file has to settle.
        """
        known = set(self._waiting)
        entries = (entry for entry in walk_entries(self._root) if is_listed(entry.name))
        while chunk := list(islice(entries, CHUNK)):
            if self._stopped:
                return
            self._find_in(chunk, now)
        end = self._clock.monotonic()
        for path, waiting in self._waiting.items():
            if path not in known:
                waiting.since = end
        self._listings += 1
        self._judged.forget(now)

    def _find_in(self, entries: list[os.DirEntry[str]], now: float) -> None:
        keys = [entry_key(entry.path, entry.inode()) for entry in entries]
        # Each known file is checked in one of so many listings, because to ask for the status of
        # all of them takes several times as long as the listing.
        rounds = 1 + len(self._judged) // CHECKED
        turn = self._listings % rounds
        for entry, key, known in zip(entries, keys, self._judged.see(keys, now), strict=True):
            path = entry.path
            if path in self._waiting or (known and key % rounds != turn):
                continue
            status = _status_of(path)
            if status is None or (known and not self._judged.is_changed(key, path, status)):
                continue
            is_first = self._listings == 0
            if (is_first and self._only_new) or self._judged.knows(path, status):
                self._judged.add(key, path, status, now)
                continue
            looked = self._clock.monotonic()
            self._waiting[path] = Waiting(key, path, status, looked, is_first)

    def _settled(self) -> list[Waiting]:
        """Take the files that have not changed for long enough, in their order."""
        now = self._clock.monotonic()
        settled = []
        for waiting in list(self._waiting.values()):
            if now < waiting.since + self._settle:
                continue
            if self._is_unchanged(waiting):
                del self._waiting[waiting.path]
                settled.append(waiting)
        return sorted(settled, key=Waiting.order)

    def _is_unchanged(self, waiting: Waiting) -> bool:
        """Tell whether a file has not changed. A changed one waits again."""
        status = _status_of(waiting.path)
        if status == waiting.status:
            return True
        if status is None:
            self._waiting.pop(waiting.path, None)
            return False
        waiting.status = status
        waiting.since = self._clock.monotonic()
        self._waiting[waiting.path] = waiting
        return False

    def _read(self, waiting: Waiting) -> Iterator[FileImage]:
        """Yield the images of a file, unless it changes while it is read."""
        path = Path(waiting.path)
        # Of several links to a file, one is read.
        if self._is_unchanged(waiting) and not self._judged.knows(waiting.path, waiting.status):
            images = decode_images(path)
            first = next(images)
            pages = 1
            for _page in images:
                # All pages are decoded before the first is judged, and are too many to be kept.
                pages += 1
                if self._stopped:
                    return
            # A file on a network share shows its true status once it was opened.
            if not self._is_unchanged(waiting):
                return
            self._remember(waiting)
            if pages == 1:
                yield first
            else:
                yield from decode_images(path)

    def _remember(self, waiting: Waiting) -> None:
        now = self._clock.monotonic()
        self._judged.add(waiting.key, waiting.path, waiting.status, now)


def _status_of(path: str) -> FileStatus | None:
    """Return the status of a file; None if it is gone, or is a pipe or device."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        # To open a pipe waits until another process writes to it.
        return None
    return FileStatus.of(status)


def _device_of(path: Path) -> int:
    return os.stat(path).st_dev


def _mount_of(path: Path) -> str:
    """Return the folder at which the file system of a path is mounted."""
    current = os.path.realpath(path)
    while not os.path.ismount(current):
        current = os.path.dirname(current)
    return current
