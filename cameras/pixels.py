"""Pixel formats of frames: which arrays are valid images, and how deep pixels become 8-bit pixels.

Only numpy is needed here. A frame holds uint8 or uint16 pixels, mono [h, w] or BGR [h, w, 3]. A
camera with 10, 12 or 14 significant bits stores them in the low bits of uint16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# Bayer, planar and packed formats are converted by the camera that receives them.
MONO = "mono"
BGR = "bgr"
SUPPORTED = "supported are uint8 and uint16, as mono [h, w] or BGR [h, w, 3]"


def format_of(image: npt.NDArray[Any]) -> str:
    """Return the pixel format that a valid image has by its shape."""
    return MONO if image.ndim == 2 else BGR


def image_fault(image: Any, pixel_format: str = "", bit_depth: int | None = None) -> str | None:
    """Say why an array cannot be judged as an image, or return None.

    `pixel_format` is the format that the source declares, or empty. `bit_depth` is the number of
    significant bits that the source declares, or None.
    """
    if not isinstance(image, np.ndarray):
        return f"the image is a {type(image).__name__}, not an array; {SUPPORTED}"
    layout = f"{image.dtype} {list(image.shape)}"
    if image.dtype not in (np.uint8, np.uint16):
        return f"the pixels are {layout}; {SUPPORTED}"
    is_mono = image.ndim == 2
    is_bgr = image.ndim == 3 and image.shape[2] == 3
    if not is_mono and not is_bgr:
        return f"the image has the shape {layout}; {SUPPORTED}"
    if image.size == 0:
        return f"the image is empty: {list(image.shape)}"
    if pixel_format and pixel_format != format_of(image):
        return f"the pixel format {pixel_format!r} does not fit {layout}; {SUPPORTED}"
    return _bit_depth_fault(image, bit_depth)


def _bit_depth_fault(image: npt.NDArray[Any], bit_depth: int | None) -> str | None:
    if bit_depth is None:
        return None
    largest = 8 * image.dtype.itemsize
    if not 8 <= bit_depth <= largest:
        return (
            f"a bit depth of {bit_depth} does not fit {image.dtype}; supported are 8 to {largest}"
        )
    # Every value of uint8 fits, so the search for the largest one is saved.
    if image.dtype == np.uint8:
        return None
    return value_fault(image, bit_depth)


def value_fault(image: npt.NDArray[Any], bit_depth: int) -> str | None:
    """Say that the image has a value beyond its bit depth, or return None."""
    value = int(image.max())
    if value >> bit_depth == 0:
        return None
    return f"value {value} does not fit in {bit_depth} bits; correct the number of bits"


def to_8_bit(image: npt.NDArray[Any], bit_depth: int) -> npt.NDArray[np.uint8]:
    """Convert an image to 8 bits per pixel by dropping its lowest bits.

    A uint8 image is returned as it is. A uint16 image, of any shape, is shifted right by
    `bit_depth` - 8, so that every image of a camera is scaled by the same factor. Raises ValueError
    for another dtype and for a value that does not fit in `bit_depth` bits.
    """
    if image.dtype == np.uint8:
        return image
    if image.dtype != np.uint16:
        raise ValueError(f"expected uint8 or uint16, got {image.dtype}")
    fault = value_fault(image, bit_depth)
    if fault is not None:
        raise ValueError(fault)
    # Shifting rounds down, as cameras do when they send 8 bits of a deeper sensor.
    shifted: npt.NDArray[np.uint8] = (image >> (bit_depth - 8)).astype(np.uint8)
    return shifted
