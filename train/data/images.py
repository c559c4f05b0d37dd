"""Images and masks of a data set in the model's input frame, and the hold-out for the threshold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import cv2
import numpy as np
import numpy.typing as npt

from flawline.cameras.decode import read_image
from flawline.runtime.image import Geometry, Image, prepare, prepare_mask
from flawline.train.data.layouts import DataError, Sample

# Fewer good images leave too little to train on once some are held out.
MIN_GOOD_IMAGES = 5
# Share of the good images that is held out to set the threshold.
HELD_OUT_SHARE = 0.2
# Images whose size `describe_sizes` reads.
SIZE_SAMPLES = 50


def hold_out(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Split good images into training images and images held out to set the threshold.

    The hash of an image's name decides its side. The same image is therefore on the same side on
    every machine, and stays there when other images are added. About HELD_OUT_SHARE of the images
    are held out; both sides get at least one image, and keep the order of `paths`. Raises DataError
    for fewer than 5 images.
    """
    if len(paths) < MIN_GOOD_IMAGES:
        raise DataError(
            f"only {len(paths)} good images; "
            f"at least {MIN_GOOD_IMAGES} are needed, 100 or more are better"
        )

    root = os.path.commonpath([path.parent for path in paths])
    ranks = {path: _rank(path.relative_to(root)) for path in paths}
    held_out = {path for path in paths if ranks[path] < HELD_OUT_SHARE}
    if len(held_out) in (0, len(paths)):
        first = min(paths, key=ranks.__getitem__)
        held_out = {first}

    training_images = []
    held_out_images = []
    for path in paths:
        if path in held_out:
            held_out_images.append(path)
        else:
            training_images.append(path)
    return training_images, held_out_images


def _rank(path: Path) -> float:
    """Map a relative path to a number in 0..1 that looks random and is always the same."""
    # The subfolder counts: some lines give the images of every part the same names.
    name = path.as_posix().encode()
    digest = hashlib.sha256(name).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class PreparedImages(Sequence[Image]):
    """Image files in the model's input frame: uint8 [H, W, 3] BGR, decoded at every access.

    `bit_depth` is the number of significant bits of 16-bit files, and None where all files have
    8 bits. An access raises CameraError for a file that cannot be read.
    """

    def __init__(
        self, paths: Sequence[Path], geometry: Geometry, bit_depth: int | None = None
    ) -> None:
        self.paths = paths
        self.geometry = geometry
        self.bit_depth = bit_depth

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Image: ...

    @overload
    def __getitem__(self, index: slice) -> PreparedImages: ...

    def __getitem__(self, index: int | slice) -> Image | PreparedImages:
        if isinstance(index, slice):
            return PreparedImages(self.paths[index], self.geometry, self.bit_depth)
        image = read_image(self.paths[index], self.bit_depth)
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


def read_mask(sample: Sample, geometry: Geometry) -> npt.NDArray[np.bool_]:
    """Read the ground truth of a test image in the model's input frame.

    Returns bool [H, W], True where the part is defective; all False for a sample without a mask.
    Raises DataError for a file that cannot be read.
    """
    if sample.mask is None:
        return np.zeros((geometry.height, geometry.width), bool)
    mask = cv2.imread(str(sample.mask), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise DataError(f"mask {sample.mask}: cannot be read; copy the data set again")
    return prepare_mask(mask, geometry)
