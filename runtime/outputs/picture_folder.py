"""A folder of pictures with limits; beyond them it is full, or the oldest ones make room."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

PICTURE = ".png"
# Written beside a picture, with the same name.
RECORD = ".json"
# The start of a run, random digits and the index of a frame: names that no other program gives.
OWN = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}-\d{6,}-")
# A file server's clock may be ahead by this much.
AHEAD_S = 60.0


@dataclass(frozen=True)
class _Picture:
    """A picture of the folder, with its record if it has one. `size` is of both, in bytes."""

    path: Path
    size: int
    written_at: float

    def delete(self) -> None:
        """Delete both files. One that is gone already is no error. Raises OSError."""
        # The record is written first and deleted last, so that no picture is without it.
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(RECORD).unlink(missing_ok=True)


class PictureFolder:
    """What a folder holds, and what may be added to it.

    It is full at `limit` pictures, or if another one would bring it above `most_bytes`. If it
    `forgets`, the oldest pictures that a stream wrote into it are deleted instead; files with other
    names are counted, and never deleted. A picture of the future was written before the clock was
    set back, and counts as older than the others. Several streams may write into the folder: what
    others add is counted whenever the pictures that are known as old are used up. Raises OSError if
    the folder cannot be read.
    """

    def __init__(self, path: Path, limit: int, most_bytes: int | None, forgets: bool) -> None:
        self._path = path
        self._limit = limit
        self._most_bytes = most_bytes
        self._forgets = forgets
        self._count = 0
        self._bytes = 0
        # The oldest one is last.
        self._own: list[_Picture] = []
        self._read()

    @property
    def is_full(self) -> bool:
        """Whether no picture can be added, however small, because none may be deleted."""
        return not self._forgets and self._count >= self._limit

    def make_room(self, size: int) -> bool:
        """Delete old pictures if that is necessary to add one of so many bytes, and allowed.

        Returns False if there is no room. Raises OSError if a picture cannot be deleted.
        """
        if self._has_room(size):
            return True
        if not self._forgets or (self._most_bytes is not None and size > self._most_bytes):
            return False
        while not self._has_room(size):
            if not self._own:
                # What was added since the folder was read.
                self._read()
            if not self._own:
                return self._has_room(size)
            oldest = self._own[-1]
            oldest.delete()
            self._own.pop()
            self._count -= 1
            self._bytes -= oldest.size
        return True

    def add(self, size: int) -> None:
        """Count a picture that was written, and its record, of so many bytes together."""
        self._count += 1
        self._bytes += size

    def _has_room(self, size: int) -> bool:
        if self._count >= self._limit:
            return False
        return self._most_bytes is None or self._bytes + size <= self._most_bytes

    def _read(self) -> None:
        """Count what is in the folder, and list the pictures that may be deleted."""
        pictures = []
        for path in self._path.glob(f"*{PICTURE}"):
            try:
                status = path.stat()
            except FileNotFoundError:
                # Deleted by another stream since it was listed.
                continue
            size = status.st_size
            record = path.with_suffix(RECORD)
            if record.exists():
                size += record.stat().st_size
            pictures.append(_Picture(path, size, status.st_mtime))
        self._count = len(pictures)
        self._bytes = sum(picture.size for picture in pictures)
        own = [picture for picture in pictures if OWN.match(picture.path.name)]
        latest = time.time() + AHEAD_S

        def age(picture: _Picture) -> tuple[bool, float, str]:
            known = picture.written_at <= latest
            return known, picture.written_at, picture.path.name

        self._own = sorted(own, key=age, reverse=True)
