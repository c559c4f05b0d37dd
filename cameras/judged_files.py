"""Which files of a watched folder were judged already."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# A file that is out of sight for shorter is not judged again when it is back: a network share may
# list its files late, and a program may move them to and fro.
FORGET_AFTER_S = 3600
# Additions that are kept apart before they are sorted into the tables: so many, or a
# sixteenth of the tables.
LEAST_ADDED = 10_000
HASH_MASK = 2**64 - 1
NANOSECONDS = 10**9

Table = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What tells one version of a file from another: device, inode, time in nanoseconds, size."""

    device: int
    inode: int
    modified_ns: int
    size: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStatus:
        return cls(status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)


def entry_key(path: str, inode: int) -> int:
    """Identify an entry as a folder lists it: its path and inode, without asking for its status."""
    return hash((path, inode)) & HASH_MASK


class JudgedFiles:
    """Remembers the files that were judged, in 48 bytes for each.

    A file is known by its path, time and size, or by its device, inode, time and size: it is judged
    again if its time or size changes, and not because it was moved or is linked to. Device and
    inode are not compared where times are whole seconds, because the next file may then have both.
    Another inode alone does not count, because some network shares change the numbers of their
    files.

    Only 64-bit hashes are stored. The chance that any of a million new files is mistaken for one of
    a million judged ones is below one in a million. A file that was not seen for an hour is
    forgotten.
    """

    def __init__(self) -> None:
        # One row per entry, sorted by the first column: the entry's key, the hashes of its version
        # and of its file, and when it was last seen, in seconds.
        self._rows: Table = np.empty((0, 4), np.uint64)
        self._versions: Table = np.empty(0, np.uint64)
        self._files: Table = np.empty(0, np.uint64)
        self._added: dict[int, tuple[int, int, int]] = {}
        self._added_hashes: set[int] = set()

    def __len__(self) -> int:
        return len(self._rows) + len(self._added)

    def add(self, key: int, path: str, status: FileStatus, now: float) -> None:
        """Remember a version of a file, and the entry under which it was found."""
        version = _version(path, status)
        file = _file(path, status)
        self._added[key] = (version, file, int(now))
        self._added_hashes.update((version, file))
        if len(self._added) > max(LEAST_ADDED, len(self._rows) // 16):
            self._merge()

    def knows(self, path: str, status: FileStatus) -> bool:
        """Tell whether this version of a file was judged, under this or another path."""
        version = _version(path, status)
        file = _file(path, status)
        if version in self._added_hashes or file in self._added_hashes:
            return True
        return _holds(self._versions, version) or _holds(self._files, file)

    def see(self, keys: Sequence[int], now: float) -> npt.NDArray[np.bool_]:
        """Tell of each entry [n] whether it is known, and note that it was seen."""
        known = np.array([key in self._added for key in keys], np.bool_)
        if not len(self._rows) or not len(keys):
            return known
        wanted = np.array(keys, np.uint64)
        places = np.searchsorted(self._rows[:, 0], wanted)
        places = np.minimum(places, len(self._rows) - 1)
        listed = self._rows[places, 0] == wanted
        self._rows[places[listed], 3] = int(now)
        known |= listed
        return known

    def is_changed(self, key: int, path: str, status: FileStatus) -> bool:
        """Tell whether the file of a known entry has another time or size than when judged."""
        if key in self._added:
            version = self._added[key][0]
        else:
            place = np.searchsorted(self._rows[:, 0], np.uint64(key))
            version = int(self._rows[place, 1])
        return version != _version(path, status)

    def forget(self, now: float) -> None:
        """Forget what was not seen for FORGET_AFTER_S seconds."""
        self._merge()
        recent = self._rows[:, 3].astype(np.float64) > now - FORGET_AFTER_S
        if not recent.all():
            self._set_rows(self._rows[recent])

    def _merge(self) -> None:
        """Sort what was added into the tables. An entry that is there already is replaced."""
        if not self._added:
            return
        added = np.empty((len(self._added), 4), np.uint64)
        added[:, 0] = np.array(list(self._added), np.uint64)
        added[:, 1:] = np.array(list(self._added.values()), np.uint64)
        kept = self._rows[~np.isin(self._rows[:, 0], added[:, 0])]
        rows = np.concatenate((kept, added))
        self._set_rows(rows[np.argsort(rows[:, 0])])
        self._added.clear()
        self._added_hashes.clear()

    def _set_rows(self, rows: Table) -> None:
        self._rows = rows
        self._versions = np.sort(rows[:, 1])
        self._files = np.sort(rows[:, 2])


def _version(path: str, status: FileStatus) -> int:
    return hash((path, status.modified_ns, status.size)) & HASH_MASK


def _file(path: str, status: FileStatus) -> int:
    if status.modified_ns % NANOSECONDS == 0:
        return _version(path, status)
    return hash((status.device, status.inode, status.modified_ns, status.size)) & HASH_MASK


def _holds(hashes: Table, wanted: int) -> bool:
    """Tell whether a sorted table holds a hash."""
    place = np.searchsorted(hashes, np.uint64(wanted))
    return bool(place < len(hashes) and hashes[place] == np.uint64(wanted))
