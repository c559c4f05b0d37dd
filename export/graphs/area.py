"""The resizing of `runtime.image.resize` as matrices: OpenCV's own weights of each step.

A step of resizing is linear and separable: a matrix for the rows and one for the columns.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]

# OpenCV's INTER_LINEAR has weights in fixed point, of so many steps.
LINEAR_STEPS = 2048
# OpenCV leaves out a share of a pixel that is not above this.
SMALLEST_SHARE = 1e-3


def area_weights(length: int, target: int) -> Matrix:
    """Return cv2.INTER_AREA along an axis that does not grow: float32 [target, length].

    A pixel of the target is the mean of the pixels below it, weighted with the share that is
    covered. See computeResizeAreaTab() of OpenCV.
    """
    weights = np.zeros((target, length), np.float32)
    scale = length / target
    for pixel in range(target):
        begin = pixel * scale
        end = begin + scale
        covered = min(scale, length - begin)
        last = min(math.floor(end), length - 1)
        first = min(math.ceil(begin), last)
        if first - begin > SMALLEST_SHARE:
            weights[pixel, first - 1] = (first - begin) / covered
        weights[pixel, first:last] = 1 / covered
        if end - last > SMALLEST_SHARE:
            weights[pixel, last] = min(end - last, 1.0, covered) / covered
    return weights


def linear_weights(length: int, target: int) -> tuple[Matrix, Matrix]:
    """Return cv2.INTER_LINEAR along an axis: two matrices, float32 [target, length] each.

    The first has the weights of the pixel at or before each position, and the second those of the
    pixel after it.
    """
    before = np.zeros((target, length), np.float32)
    after = np.zeros((target, length), np.float32)
    scale = length / target
    for pixel in range(target):
        # Centres of pixels are compared, and the outermost are repeated outside of the image.
        position = min(max((pixel + 0.5) * scale - 0.5, 0.0), length - 1.0)
        first = math.floor(position)
        share = round((position - first) * LINEAR_STEPS) / LINEAR_STEPS
        before[pixel, first] = 1 - share
        if share:
            after[pixel, first + 1] = share
    return before, after
