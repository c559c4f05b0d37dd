"""The files that a training writes about doubtful images. Needs no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from flawline.runtime.files import read_small

# The last line of a list has the SHA-256 of those above it: a person may have changed them since.
CHECKSUM = b"# sha256 "
# Of the part of a list that is compared; one that a training writes is shorter.
MOST_BYTES = 1 << 27
LIST_SUFFIX = ".doubtful.txt"
PICTURE_SUFFIX = ".doubtful.png"


def with_checksum(lines: bytes) -> bytes:
    """Return the content of a list with a last line by which `DoubtfulFiles.is_edited` tells."""
    return lines + CHECKSUM + checksum_of(lines) + b"\n"


def checksum_of(lines: bytes) -> bytes:
    """Return the SHA-256 of lines as hexadecimal digits."""
    return hashlib.sha256(lines).hexdigest().encode()


@dataclass(frozen=True)
class DoubtfulFiles:
    """The files next to a checkpoint that name and show its doubtful images."""

    checkpoint: Path

    @property
    def list(self) -> Path:
        """The list, which --exclude-images takes."""
        return self.checkpoint.with_name(self.checkpoint.stem + LIST_SUFFIX)

    @property
    def picture(self) -> Path:
        """The picture of the first ones."""
        return self.checkpoint.with_name(self.checkpoint.stem + PICTURE_SUFFIX)

    def is_edited(self) -> bool:
        """Whether there is a list that no training wrote as it is. Raises OSError."""
        if not self.list.exists():
            return False
        lines, mark, checksum = read_small(self.list, MOST_BYTES).rpartition(CHECKSUM)
        return not mark or checksum.strip() != checksum_of(lines)

    def remove(self) -> None:
        """Remove the files of an earlier training."""
        self.list.unlink(missing_ok=True)
        self.picture.unlink(missing_ok=True)
