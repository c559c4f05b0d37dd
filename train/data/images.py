"""Images of a data set in the model's input frame, and the sizes of their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from flawline.cameras.decode import read_image
from flawline.runtime.fixture import FixtureError
from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Geometry, Image, prepare
from flawline.runtime.inspected_area import AreaError
from flawline.runtime.source_frame import SourceError
from flawline.train.data.mosaics import describe_mosaics, mosaic_pattern

# Images that `describe_images` reads.
IMAGES_READ = 50
# The remedy for 16-bit images in commands on a detector that was trained on 8-bit images.
TRAIN_WITH_BITS = (
    "the detector was trained on 8-bit images: train it again with the number of significant bits, "
    "such as --bits 12, or use 8-bit images"
)


class PreparedImages(Sequence[Image]):
    """Image files in the model's input frame: uint8 [H, W, 3] BGR, decoded at every access.

    `bit_depth` is the number of significant bits of 16-bit files, and None where all files have
    8 bits. `convert` takes the place of `prepare`, for graphs that take other images. `sizes` holds
    the height and width of each file that was accessed, before it was resized; a slice shares it.
    An access raises CameraError for a file that cannot be read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        geometry: Geometry,
        bit_depth: int | None = None,
        convert: Callable[[Image], Image] | None = None,
    ) -> None:
        self.paths = paths
        self.geometry = geometry
        self.bit_depth = bit_depth
        self.convert = convert
        self.sizes: dict[Path, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Image: ...

    @overload
    def __getitem__(self, index: slice) -> PreparedImages: ...

    def __getitem__(self, index: int | slice) -> Image | PreparedImages:
        if isinstance(index, slice):
            part = PreparedImages(self.paths[index], self.geometry, self.bit_depth, self.convert)
            part.sizes = self.sizes
            return part
        path = self.paths[index]
        image = read_image(path, self.bit_depth)
        height, width = image.shape[:2]
        self.sizes[path] = (height, width)
        if self.convert is None:
            return prepare(image, self.geometry)
        try:
            return self.convert(image)
        except AreaError as error:
            raise AreaError(f"{path}: {error}") from error
        except FixtureError as error:
            raise FixtureError(f"{path}: {error}") from error
        except SourceError as error:
            raise SourceError(f"{path}: {error}") from error


def frames_of(
    paths: Sequence[Path], graph_input: GraphInput, bit_depth: int | None
) -> PreparedImages:
    """Return image files as frames that are prepared for the network, before they are tiled."""
    convert = graph_input.prepared
    return PreparedImages(paths, graph_input.frame_geometry, bit_depth, convert)


def describe_images(
    paths: Sequence[Path], geometry: Geometry, bit_depth: int | None = None
) -> list[str]:
    """Return log lines about source images: sizes, what a crop cuts off, mosaics, unused bits.

    Up to 50 images are read, spread evenly over `paths`. The list is empty where there is nothing
    to report.
    """
    sizes = set()
    largest_value = 0
    patterns = []
    for index in _spread_indices(len(paths), IMAGES_READ):
        image = read_image(paths[index], bit_depth)
        height, width = image.shape[:2]
        sizes.add((height, width))
        largest_value = max(largest_value, int(image.max()))
        patterns.append(mosaic_pattern(image))
    lines = _describe_sizes(sizes, geometry)
    grey = [pattern for pattern in patterns if pattern is not None]
    mosaics = describe_mosaics(grey) if len(grey) == len(patterns) else None
    if mosaics is not None:
        lines.append(mosaics)
    unused = 8 - largest_value.bit_length()
    # Dark parts may leave one bit unused.
    if bit_depth is not None and unused > 1:
        lines.append(
            f"the largest value of the images needs {bit_depth - unused} of the declared "
            f"{bit_depth} bits, so that they become {2**unused} times darker than they could be; "
            f"declare the bit depth of the camera"
        )
    return lines


def _describe_sizes(sizes: set[tuple[int, int]], geometry: Geometry) -> list[str]:
    """Describe these (height, width): that they differ, and what the geometry cuts off."""
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
