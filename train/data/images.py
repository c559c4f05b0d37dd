"""Data sets as training and benchmarks use them: held-out images, images and masks as the model sees them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawline.cameras.decode import read_image
from flawline.runtime.image import Geometry, Image, prepare, prepare_mask
from flawline.train.data.layouts import DataError, DataSet, Sample, open_data

# What the other packages need to open a data set is all here.
__all__ = [
    "DataError",
    "DataSet",
    "PreparedImages",
    "Sample",
    "describe_sizes",
    "hold_out",
    "open_data",
    "read_mask",
]


def hold_out(paths: Sequence[Path], fraction: float = 0.2) -> tuple[list[Path], list[Path]]:
    """(training images, held-out images for the threshold). Decided per image by the hash of its name, so that the
    same image is on the same side on every machine, and stays there when others are added."""
    if len(paths) < 5:
        raise DataError(
            f"only {len(paths)} good images; at least 5 are needed, 100 or more are better"
        )

    root = os.path.commonpath([path.parent for path in paths])

    def rank(path: Path) -> float:
        name = path.relative_to(
            root
        ).as_posix()  # with its subfolder: some lines name every part's pictures alike
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64

    held = {p for p in paths if rank(p) < fraction} or {min(paths, key=rank)}
    if len(held) == len(paths):
        held = {min(paths, key=rank)}
    return [p for p in paths if p not in held], [p for p in paths if p in held]


class PreparedImages(Sequence[Image]):
    """Image files as the model sees them, uint8 [H, W, 3], read when asked for."""

    def __init__(self, paths: Sequence[Path], geometry: Geometry, bits: int | None = None) -> None:
        self.paths, self.geometry, self.bits = paths, geometry, bits

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return PreparedImages(self.paths[index], self.geometry, self.bits)
        return prepare(read_image(self.paths[index], self.bits), self.geometry)


def describe_sizes(paths: Sequence[Path], geometry: Geometry, bits: int | None = None) -> list[str]:
    """What to say aloud about the sources' sizes: that they are mixed, and what a crop leaves uninspected."""
    sizes = sorted(
        {read_image(p, bits).shape[:2] for p in (paths[i] for i in _spread(len(paths), 50))}
    )
    lines = []
    if len(sizes) > 1:
        (h0, w0), (h1, w1) = sizes[0], sizes[-1]
        lines.append(
            f"images differ in size ({w0}x{h0} to {w1}x{h1}); each becomes {geometry.width}x{geometry.height}"
        )
    lost = [text for h, w in (sizes[0], sizes[-1]) if (text := geometry.uninspected(h, w))]
    return lines + list(dict.fromkeys(lost))


def _spread(n: int, count: int) -> list[int]:
    return sorted(set(np.linspace(0, n - 1, min(n, count)).astype(int).tolist()))


def read_mask(sample: Sample, geometry: Geometry) -> npt.NDArray[np.bool_]:
    """The ground truth in the model's input frame: bool [H, W]; all False for a good part."""
    if sample.mask is None:
        return np.zeros((geometry.height, geometry.width), bool)
    mask = cv2.imread(str(sample.mask), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise DataError(f"mask {sample.mask}: cannot be read; copy the data set again")
    return prepare_mask(mask, geometry)
