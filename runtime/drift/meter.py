"""What is measured of each prepared frame: light, fineness, a small picture and its texture.

Nothing here depends on the good images. It takes some hundred microseconds of one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Image, resize

SIDE = 64  # pixels of the small picture
COARSE_SIDE = 16
# Coarse detail is that of the frame reduced by this factor, which a little blur hardly changes, and
# of further halves.
COARSE_FACTOR = 4
COARSE_SCALES = 3
STRUCTURE_SIZE = 2 * COARSE_SCALES - 1
FINENESS_SIZE = 2
# The texture is described on this many scales, each half of the one before.
SCALES = 5
TEXTURE_SIZE = 2 * (SCALES - 1)
# Energies of less than this, in squared grey levels, are rounding.
LEAST_ENERGY = 0.05

Vector = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Cells = npt.NDArray[np.uint8] | None
Pair = tuple[float, float]


class Measured(NamedTuple):
    """What was measured of a frame.

    `brightness` and `contrast` are the mean and the standard deviation of the small picture, in
    grey levels. `red` and `blue` are the means of these colours, divided by that of green.
    `fineness`, float64 [2], is the mean frequency of detail in octaves, of the frame and of half of
    it, where noise counts less. `structure`, float64 [5], says how coarse detail is spread over
    scales and directions, and `texture`, float64 [8], all detail, whatever the contrast and the
    place. `picture` is the small picture, uint8 [64, 64].
    """

    brightness: float
    contrast: float
    red: float
    blue: float
    fineness: Vector
    structure: Vector
    texture: Vector
    picture: Image


class FrameMeter:
    """Measures frames as `GraphInput.of_frame` returns them, in their inspected part alone.

    `cells` is 255 where a pixel of the small picture is inspected, uint8 [64, 64], None if all are.
    Without `textures`, which take half of the time, they are zeros. Raises ValueError if no pixel
    of the small picture is wholly inspected.
    """

    def __init__(self, graph_input: GraphInput, textures: bool = True) -> None:
        self._textures = textures
        geometry = graph_input.frame_geometry
        self._size = (geometry.width, geometry.height)
        # A camera's frame is measured at the size that the network sees it in.
        self._reduces = graph_input.source is not None
        self.cells: Cells = None
        self._coarse: Cells = None
        self._coarse_scales: list[Cells] = [None] * COARSE_SCALES
        self._scales: list[Cells] = [None] * SCALES
        inspected = graph_input.inspected_cells
        if inspected is not None:
            self._set_cells(inspected.astype(np.float32))

    def _set_cells(self, inspected: Floats) -> None:
        small = cv2.resize(inspected, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        self.cells = _whole(small)
        if not self.cells.any():
            raise ValueError("the inspected area has no cell of the small picture")
        coarse = _whole(cv2.resize(small, (COARSE_SIDE, COARSE_SIDE), interpolation=cv2.INTER_AREA))
        # A narrow area may have no whole coarse cell.
        self._coarse = coarse if coarse.any() else None
        self._coarse_scales = _inner_scales(_reduced(inspected, COARSE_FACTOR), COARSE_SCALES)
        self._scales = _inner_scales(inspected, SCALES)

    def measure(self, image: npt.NDArray[Any]) -> Measured:
        """Measure a frame, uint8 [h, w, 3] BGR, or [h, w] of a camera without colours."""
        if self._reduces:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        small = resize(image, SIDE, SIDE)
        red = blue = 1.0
        grey = image
        picture = small
        if image.ndim == 3:
            means = cv2.mean(small, self.cells)
            red = (means[2] + 1) / (means[1] + 1)
            blue = (means[0] + 1) / (means[1] + 1)
            grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
            picture = np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), np.uint8)
        coarse = resize(picture, COARSE_SIDE, COARSE_SIDE)
        _, deviation = cv2.meanStdDev(coarse, mask=self._coarse)
        half = _half(grey)
        energies = [
            _direction_energies(grey, self._scales[0]),
            _direction_energies(half, self._scales[1]),
        ]
        return Measured(
            brightness=cv2.mean(picture, self.cells)[0],
            contrast=float(deviation[0, 0]),
            red=red,
            blue=blue,
            fineness=self._fineness([grey, half], energies),
            structure=self._structure(grey),
            texture=self._texture(half, energies),
            picture=picture,
        )

    def _fineness(self, pictures: Sequence[npt.NDArray[Any]], energies: list[Pair]) -> Vector:
        """Return the mean frequency of the detail of each picture."""
        found = []
        for picture, pair, cells in zip(pictures, energies, self._scales, strict=False):
            kind = cv2.CV_16S if picture.dtype == np.uint8 else cv2.CV_32F
            curvature = _energy(cv2.Laplacian(picture, kind), cells)
            # Half of it, because energies are squares.
            found.append(0.5 * np.log2(curvature / sum(pair)))
        return np.array(found)

    def _structure(self, grey: Image) -> Vector:
        """Return how energy changes from scale to scale, and how it differs between directions."""
        reduced = _reduced(grey, COARSE_FACTOR)
        return np.concatenate(_spread(_scale_energies(reduced, self._coarse_scales)))

    def _texture(self, half: Floats, energies: list[Pair]) -> Vector:
        """Return what `_structure` does, of all scales but for the direction of the finest one.

        `energies` are those of the first two scales.
        """
        if not self._textures:
            return np.zeros(TEXTURE_SIZE)
        others = _scale_energies(_half(half), self._scales[2:])
        steps, directions = _spread([*energies, *others])
        return np.array([*steps, *directions[1:]])


def _scale_energies(values: npt.NDArray[Any], masks: list[Cells]) -> list[Pair]:
    """Return the energies across and down of values, and of each half of them."""
    pairs = []
    for number, cells in enumerate(masks):
        if number > 0:
            values = _half(values)
        pairs.append(_direction_energies(values, cells))
    return pairs


def _spread(pairs: list[Pair]) -> tuple[Vector, Vector]:
    """Return the changes of energy from scale to scale, and its ratios across and down."""
    energies = np.array(pairs)
    return np.diff(np.log2(energies.sum(1))), np.log2(energies[:, 0] / energies[:, 1])


def _direction_energies(values: npt.NDArray[Any], cells: Cells) -> Pair:
    """Return the energies of the differences across and down, of pixels two apart."""
    across_cells = down_cells = cells
    if cells is not None:
        across_cells = cells[:, 1:-1]
        down_cells = cells[1:-1]
    across = _difference_energy(values[:, 2:], values[:, :-2], across_cells)
    return across, _difference_energy(values[2:], values[:-2], down_cells)


def _difference_energy(one: npt.NDArray[Any], other: npt.NDArray[Any], cells: Cells) -> float:
    """Return the mean square of a difference, in the given cells."""
    count = one.size if cells is None else cv2.countNonZero(cells)
    if not count or not one.size:
        return LEAST_ENERGY
    return float(cv2.norm(one, other, cv2.NORM_L2SQR, cells)) / count + LEAST_ENERGY


def picture_difference(one: Image, other: Image) -> float:
    """Return the mean difference of two small pictures, in grey levels."""
    return float(cv2.norm(one, other, cv2.NORM_L1)) / (SIDE * SIDE)


def _energy(values: npt.NDArray[Any], cells: Cells) -> float:
    """Return the mean square of some values, in the given cells."""
    count = values.size if cells is None else cv2.countNonZero(cells)
    if not count:
        return LEAST_ENERGY
    return float(cv2.norm(values, cv2.NORM_L2SQR, cells)) / count + LEAST_ENERGY


def _whole(share: npt.NDArray[Any]) -> Image:
    """Return 255 where all of a cell is inspected. A mean of ones is only about 1."""
    whole: Image = np.where(share > 1 - 1e-4, 255, 0).astype(np.uint8)
    return whole


def _inner(cells: Image) -> Image:
    """Return the cells whose neighbours are inspected, too, since a filter reads these."""
    return np.asarray(cv2.erode(cells, np.ones((3, 3), np.uint8)), np.uint8)


def _inner_scales(share: Floats, count: int) -> list[Cells]:
    """Return the inner cells of a picture and of so many halves of it; None where there is none."""
    scales: list[Cells] = []
    for number in range(count):
        if number > 0:
            share = _half(share)
        cells = _inner(_whole(share))
        scales.append(cells if cells.any() else None)
    return scales


def _half(values: npt.NDArray[Any]) -> Floats:
    return _reduced(values, 2)


def _reduced(values: npt.NDArray[Any], factor: int) -> Floats:
    height, width = values.shape
    size = (max(width // factor, 1), max(height // factor, 1))
    reduced = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
    return np.asarray(reduced, np.float32)
