"""Good images that train a detector and set its threshold: how they are divided, and their scores.

Training on a machine with torch and teaching on the box divide them by the same rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from flawline import FlawlineError


class DataError(FlawlineError):
    """The images cannot be used; the message is one line and ends with the remedy."""


class GoodImages(tuple[Path, ...]):
    """Files of good images, and the folders of good images in which they lie.

    The folders give each image a name that does not change when other folders come or go.
    """

    folders: tuple[Path, ...]

    def __new__(cls, paths: Iterable[Path], folders: Sequence[Path]) -> GoodImages:
        images = super().__new__(cls, paths)
        images.folders = tuple(folders)
        return images

    def name_of(self, path: Path) -> Path:
        """Return the path of an image below its folder of good images."""
        for folder in self.folders:
            if path.is_relative_to(folder):
                return path.relative_to(folder)
        return path
