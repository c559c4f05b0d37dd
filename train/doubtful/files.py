"""The files that a training writes about doubtful images. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LIST_SUFFIX = ".doubtful.txt"
PICTURE_SUFFIX = ".doubtful.png"


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

    def remove(self) -> None:
        """Remove the files of an earlier training."""
        self.list.unlink(missing_ok=True)
        self.picture.unlink(missing_ok=True)
