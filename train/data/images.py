"""Images of a data set in the model's input frame, and the sizes of their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from flawline.cameras.decode import read_image
from flawline.runtime.image import Geometry, Image, prepare

# Images whose size `describe_sizes` reads.
SIZE_SAMPLES = 50


class PreparedImages(Sequence[Image]):
    """Image files in the model's input frame: uint8 [H, W, 3] BGR, decoded at every access.

    `bit_depth` is the number of significant bits of 16-bit files, and None where all files have
    8 bits. `sizes` holds the height and width of each file that was accessed, before it was
    resized; a slice shares it. An access raises CameraError for a file that cannot be read.
    """

    def __init__(
        self, paths: Sequence[Path], geometry: Geometry, bit_depth: int | None = None
    ) -> None:
        self.paths = paths
        self.geometry = geometry
        self.bit_depth = bit_depth
        self.sizes: dict[Path, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Image: ...

    @overload
    def __getitem__(self, index: slice) -> PreparedImages: ...

    def __getitem__(self, index: int | slice) -> Image | PreparedImages:
        if isinstance(index, slice):
            part = PreparedImages(self.paths[index], self.geometry, self.bit_depth)
            part.sizes = self.sizes
            return part
        path = self.paths[index]
        image = read_image(path, self.bit_depth)
        height, width = image.shape[:2]
        self.sizes[path] = (height, width)
        return prepare(image, self.geometry)


def describe_sizes(
    paths: Sequence[Path], geometry: Geometry, bit_depth: int | None = None
) -> list[str]:
    """Return log lines about the sizes of the source images: mixed sizes, and what a crop cuts off.

    Up to 50 images are read, spread evenly over `paths`. The list is empty where there is nothing
    to report.
    """
    sizes = set()
    for index in _spread_indices(len(paths), SIZE_SAMPLES):
        height, width = read_image(paths[index], bit_depth).shape[:2]
        sizes.add((height, width))
    smallest = min(sizes)
    largest = max(sizes)

    lines = []
    if smallest != largest:
        lines.append(
            f"images differ in size ({_size_text(*smallest)} to {_size_text(*largest)}); "
            f"each becomes {_size_text(geometry.height, geometry.width)}"
        )
    for height, width in (smallest, largest):
        uninspected = geometry.uninspected(height, width)
        if uninspected is not None and uninspected not in lines:
            lines.append(uninspected)
    return lines


def _size_text(height: int, width: int) -> str:
    return f"{width}x{height}"


def _spread_indices(length: int, count: int) -> list[int]:
    """Return at most `count` different indices, spread evenly over a sequence of `length` items."""
    positions = np.linspace(0, length - 1, min(length, count)).astype(int)
    return sorted(set(positions.tolist()))
