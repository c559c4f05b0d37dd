"""What is measured of each prepared frame: light, sharpness, a small picture and its texture.

Nothing here depends on the good images. It takes some hundred microseconds of one core.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from flawline.runtime.graph_input import GraphInput
from flawline.runtime.image import Image, resize

SIDE = 64  # pixels of the small picture
COARSE_SIDE = 16
# The texture is described on this many scales, each half of the one before.
SCALES = 5
TEXTURE_SIZE = 2 * (SCALES - 1)
# Energies of less than this, in squared grey levels, are rounding.
LEAST_ENERGY = 0.05

Vector = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Cells = npt.NDArray[np.uint8] | None


class Measured(NamedTuple):
    """What was measured of a frame.

    `brightness` and `contrast` are the mean and the standard deviation of the small picture, in
    grey levels. `red` and `blue` are the means of these colours, divided by that of green.
    `sharpness` is the ratio of fine to coarse detail. `texture`, float64 [8], says how detail is
    spread over scales and directions, whatever the contrast and the place. `picture` is the small
    picture, uint8 [64, 64].
    """

    brightness: float
    contrast: float
    red: float
    blue: float
    sharpness: float
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
        self._fine: Cells = None
        self._rough: Cells = None
        self._coarse: Cells = None
        self._scales: list[Cells] = [None] * SCALES
        inspected = graph_input.inspected_cells
        if inspected is not None:
            self._set_cells(inspected.astype(np.float32))

    def _set_cells(self, inspected: Floats) -> None:
        small = cv2.resize(inspected, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        self.cells = _whole(small)
        if not self.cells.any():
            raise ValueError("the inspected area has no cell of the small picture")
        self._fine = _inner(_whole(inspected))
        self._rough = _inner(self.cells)
        coarse = _whole(cv2.resize(small, (COARSE_SIDE, COARSE_SIDE), interpolation=cv2.INTER_AREA))
        # A narrow area may have no whole coarse cell.
        self._coarse = coarse if coarse.any() else None
        scale = inspected
        for number in range(SCALES):
            cells = _inner(_whole(scale))
            self._scales[number] = cells if cells.any() else None
            scale = _half(scale)

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
        fine = _energy(cv2.Laplacian(grey, cv2.CV_16S), self._fine)
        rough = _energy(cv2.Laplacian(picture, cv2.CV_16S), self._rough)
        return Measured(
            brightness=cv2.mean(picture, self.cells)[0],
            contrast=float(deviation[0, 0]),
            red=red,
            blue=blue,
            sharpness=float(np.sqrt(fine / rough)),
            texture=self._texture(grey),
            picture=picture,
        )

    def _texture(self, grey: Image) -> Vector:
        """Return how energy changes from scale to scale, and how it differs between directions."""
        if not self._textures:
            return np.zeros(TEXTURE_SIZE)
        energies = []
        directions = []
        scale: npt.NDArray[Any] = grey
        for number in range(SCALES):
            if number > 0:
                scale = _half(scale)
            cells = self._scales[number]
            across = _energy(cv2.Sobel(scale, cv2.CV_32F, 1, 0, ksize=1), cells)
            down = _energy(cv2.Sobel(scale, cv2.CV_32F, 0, 1, ksize=1), cells)
            energies.append(np.log2(across + down))
            directions.append(np.log2(across / down))
        return np.array([*np.diff(energies), *directions[1:]])


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


def _half(values: npt.NDArray[Any]) -> Floats:
    height, width = values.shape
    size = (max(width // 2, 1), max(height // 2, 1))
    halved = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
    return np.asarray(halved, np.float32)
