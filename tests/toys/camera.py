"""The smallest camera: grey frames, without hardware."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from flawline.cameras import Camera, CameraOptions, Frame
from flawline.options import option


@dataclass(frozen=True)
class GreyOptions(CameraOptions):
    frames: int = option(3, "frames until the source ends")
    level: int = option(128, "grey level, 0 to 255")

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 255:
            raise ValueError("level must be from 0 to 255")


class Grey(Camera):
    """toy://?frames=3&level=128"""

    Options: ClassVar[type[GreyOptions]] = GreyOptions

    def __init__(self, path: str, options: GreyOptions) -> None:
        super().__init__()
        self._options = options

    @classmethod
    def example(cls, folder: Path) -> str | None:
        return "toy://?frames=5"

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self._options.frames):
            if self._stopped:
                return
            yield Frame("toy://", index, np.full((48, 64), self._options.level, np.uint8))
