"""OpenCV's bilinear conversion of a Bayer mosaic as convolutions.

A mosaic repeats a pattern of two by two pixels, in which the conversion differs for each of the
four positions. As planes of half the size, one for each position and colour, it is one convolution
with a stride of 2.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flawline.runtime.source_frame import BGR

# OpenCV copies the outermost rows and columns of the result from those next to them.
EDGE_ROWS = 1
# The weights around a pixel, of which those count where the mosaic has the colour. Green is at two
# of four positions.
_GREEN = ((0, 0.25, 0), (0.25, 1, 0.25), (0, 0.25, 0))
_OTHERS = ((0.25, 0.5, 0.25), (0.5, 1, 0.5), (0.25, 0.5, 0.25))


def demosaic_kernels(layout: str) -> npt.NDArray[np.float32]:
    """Return the kernels for a Bayer layout, float32 [12, 1, 4, 4].

    A kernel begins one pixel above and left of its four pixels. The 12 are the four positions, each
    in BGR: first that at the top left, then that at the top right.
    """
    pattern = layout[-4:]
    kernels = np.zeros((4, 3, 4, 4), np.float32)
    for position in range(4):
        row, column = divmod(position, 2)
        for colour, name in enumerate(BGR):
            weights = _GREEN if name == "g" else _OTHERS
            for y in range(3):
                for x in range(3):
                    # The kernel's first pixel has the position at the bottom right.
                    seen = pattern[2 * ((row + y + 1) % 2) + (column + x + 1) % 2]
                    if seen == name:
                        kernels[position, colour, row + y, column + x] = weights[y][x]
    return kernels.reshape(12, 1, 4, 4)


def edge_shares(length: int) -> npt.NDArray[np.float32]:
    """Return the shares of both positions along an axis in the mean of a pair: float32 [2, length].

    In the outermost pairs, the position at the edge is a copy of the other one.
    """
    shares = np.full((2, length), 0.5, np.float32)
    shares[:, 0] = (0, 1)
    shares[:, -1] = (1, 0)
    return shares
