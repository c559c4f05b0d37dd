"""How a picture for teaching is stored: its file, a small picture, and a record of what it shows.

The record is written last: a picture without one is not whole, as after a power failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from flawline.runtime.files import read_small
from flawline.runtime.outputs.web.shapes import PartState

PICTURE, SMALL, RECORD = ".png", ".jpg", ".json"
SUFFIXES = (PICTURE, SMALL, RECORD)
LARGEST_SMALL = 1 << 20  # bytes
# How every PNG file ends; after a power failure, the end of a file may be zeros.
PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Record:
    """What is stored about a picture.

    `person` says that it is of a good part, of this `kind`, and `facts` are of the judgement.
    `bits` is the bit depth that the camera declared for 16-bit values; `size` and `digest` are of
    the file.
    """

    kind: str
    person: str
    facts: PartState
    bits: int | None
    size: int
    digest: str


def store(file: Path, content: bytes, small: bytes, record: Record) -> None:
    """Write a picture, as PNG to `file` and the rest beside it. Raises OSError."""
    try:
        file.write_bytes(content)
        file.with_suffix(SMALL).write_bytes(small)
        file.with_suffix(RECORD).write_bytes(msgspec.json.encode(record))
    except OSError:
        # What there is of it would take space from others.
        remove(file)
        raise


def remove(file: Path) -> None:
    """Remove a picture, its record first. Raises OSError."""
    for suffix in reversed(SUFFIXES):
        file.with_suffix(suffix).unlink(missing_ok=True)


def move(file: Path, target: Path) -> None:
    """Move a picture to another folder, its record last. Raises OSError."""
    for suffix in SUFFIXES:
        os.replace(file.with_suffix(suffix), target.with_suffix(suffix))


def stored(folder: Path) -> Iterator[tuple[Path, Record]]:
    """Yield the file and the record of each whole picture in a folder."""
    for path in sorted(folder.glob(f"*{RECORD}")):
        file = path.with_suffix(PICTURE)
        try:
            record = msgspec.json.decode(read_small(path, LARGEST_SMALL), type=Record)
            if file.stat().st_size != record.size or not _has_its_end(file):
                continue
            file.with_suffix(SMALL).stat()
        except (OSError, msgspec.DecodeError):
            continue
        yield file, record


def shown(file: Path) -> bytes | None:
    """Return the small picture of a picture as JPEG; None if it cannot be read."""
    try:
        return read_small(file.with_suffix(SMALL), LARGEST_SMALL)
    except OSError:
        return None


def _has_its_end(file: Path) -> bool:
    with file.open("rb") as opened:
        opened.seek(-len(PNG_END), os.SEEK_END)
        return opened.read() == PNG_END
