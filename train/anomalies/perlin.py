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
    angles = rng.uniform(0, 2 * math.pi, (cells[0] + 1, cells[1] + 1)).astype(np.float32)
    weight_y, slope_y = _corner_weights(shape[0], cells[0])
    weight_x, slope_x = _corner_weights(shape[1], cells[1])
    # The sum over the corners of a cell is a product of matrices.
    down = slope_y @ np.sin(angles) @ weight_x.T
    right = weight_y @ np.cos(angles) @ slope_x.T
    return np.asarray(np.float32(math.sqrt(2)) * (down + right), np.float32)


def _corner_weights(side: int, cells: int) -> tuple[Noise, Noise]:
    """Return the weights of the corners at the pixels of an axis, [side, cells + 1].

    The second array holds the weights times the distance from the corner, in cells, with its sign.
    """
    pixels = np.arange(side) * (cells / side)
    distance = (pixels[:, None] - np.arange(cells + 1)).astype(np.float32)
    t = np.minimum(np.abs(distance), 1)
    weight = 1 - t**3 * (t * (6 * t - 15) + 10)
    return weight, weight * distance


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
