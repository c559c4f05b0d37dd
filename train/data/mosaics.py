"""Bayer mosaics that were saved as grey images: a fixed pattern of 2x2 pixels shows them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from flawline.runtime.image import Image

# A mosaic has a difference of at least so many grey levels between the means of pixels of two
# colours. It is at most 0.08 in the grey images of ELPV, the magnetic tiles, the bottles and the
# demo, and at least 4 in mosaics of the bottles and of the demo's coloured parts. Of a part without
# colours, a mosaic is a grey image.
SMALLEST_DIFFERENCE = 1.0
# The two green pixels of a mosaic are on a diagonal: their means differ by at most this share of
# the largest difference. Interlaced rows and columns of different gain are no mosaic.
LARGEST_SHARE = 0.25

Pattern = npt.NDArray[np.float64]


def mosaic_pattern(image: Image) -> Pattern | None:
    """Return the means of the four pixels of 2x2, less their mean.

    None for an image with colours, or without 2x2 pixels.
    """
    grey = image
    if image.ndim == 3:
        if (image != image[..., :1]).any():
            return None
        grey = image[..., 0]
    height, width = (side // 2 * 2 for side in grey.shape)
    if not (height and width):
        return None
    pixels = grey[:height, :width].reshape(height // 2, 2, width // 2, 2)
    means = pixels.mean((0, 2), np.float64).ravel()
    pattern: Pattern = means - means.mean()
    return pattern


def describe_mosaics(patterns: Sequence[Pattern]) -> str | None:
    """Say that grey images of these patterns look like Bayer mosaics; None if they do not.

    The content of an image has no fixed pattern, so that the median of all images is compared.
    """
    if not patterns:
        return None
    pattern = np.median(patterns, axis=0)
    difference = float(np.ptp(pattern))
    greens = min(abs(pattern[0] - pattern[3]), abs(pattern[1] - pattern[2]))
    if difference < SMALLEST_DIFFERENCE or greens > LARGEST_SHARE * difference:
        return None
    return (
        f"the images look like Bayer mosaics that were saved as grey images: pixels next to each "
        f"other differ by {difference:.1f} grey levels in a pattern of 2x2; train on colour "
        f"images, as a camera gives with pixel_format=BayerRG8 and without mosaic="
    )
