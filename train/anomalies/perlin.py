"""Masks of irregular shape from Perlin noise.

Perlin, "Improving noise" (SIGGRAPH 2002): gradient noise with the fade 6t^5 - 15t^4 + 10t^3. The
masks are those of the codes of DRAEM (ICCV 2021) and GLASS (ECCV 2024). No file is read.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from flawline.train.anomalies import Mask

Shape = tuple[int, int]  # height, width
Noise = npt.NDArray[np.float32]

# Cells along an axis: 2 to the power of 0 to 5.
EXPONENTS = 6
THRESHOLD = 0.5
# Degrees by which the noise is rotated, to either side.
ROTATION = 90.0
# A mask is drawn again while it is empty, about once in ten times.
ATTEMPTS = 100


def perlin_noise(shape: Shape, cells: Shape, rng: np.random.Generator) -> Noise:
    """Draw Perlin noise, float32 [H, W], of so many cells along both axes.

    Its values lie between -1 and 1, and are 0 at the upper left corner of every cell.
    """
    angles = rng.uniform(0, 2 * math.pi, (cells[0] + 1, cells[1] + 1))
    down = np.sin(angles).astype(np.float32)
    right = np.cos(angles).astype(np.float32)
    row, y = _places(shape[0], cells[0])
    column, x = _places(shape[1], cells[1])
    rows = []
    for below in (0, 1):
        corners = []
        for beside in (0, 1):
            corner = np.ix_(row + below, column + beside)
            slope = (y - below)[:, None] * down[corner] + (x - beside)[None] * right[corner]
            corners.append(slope)
        rows.append(_between(corners[0], corners[1], _fade(x)[None]))
    noise = _between(rows[0], rows[1], _fade(y)[:, None])
    return np.asarray(math.sqrt(2) * noise, np.float32)


def _places(side: int, cells: int) -> tuple[npt.NDArray[np.int64], Noise]:
    """Return the cell of each pixel of an axis, and where in it the pixel lies, from 0 to 1."""
    position = np.arange(side) * (cells / side)
    cell = position.astype(np.int64)
    return cell, (position - cell).astype(np.float32)


def _fade(t: Noise) -> Noise:
    return np.asarray(t**3 * (t * (6 * t - 15) + 10), np.float32)


def _between(first: Noise, second: Noise, share: Noise) -> Noise:
    return np.asarray(first + share * (second - first), np.float32)


def perlin_mask(shape: Shape, rng: np.random.Generator) -> Mask:
    """Draw where rotated Perlin noise of a random fineness exceeds a half: bool [H, W].

    It may be empty.
    """
    exponents = rng.integers(0, EXPONENTS, 2).tolist()
    noise = perlin_noise(shape, (2 ** exponents[0], 2 ** exponents[1]), rng)
    centre = ((shape[1] - 1) / 2, (shape[0] - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, float(rng.uniform(-ROTATION, ROTATION)), 1.0)
    # What the rotation brings in from outside is 0, which is below the threshold.
    return np.asarray(cv2.warpAffine(noise, matrix, shape[::-1]) > THRESHOLD, bool)


def combined_mask(shape: Shape, rng: np.random.Generator) -> Mask:
    """Draw the union or the intersection of two Perlin masks, or one mask: bool [H, W].

    Each has a probability of a third. It may be empty.
    """
    first = perlin_mask(shape, rng)
    second = perlin_mask(shape, rng)
    choice = int(rng.integers(3))
    if choice == 0:
        return first
    if choice == 1:
        return first & second
    return first | second
