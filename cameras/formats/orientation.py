"""The EXIF orientation of an image, applied the same way for every file format."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

ORIENTATION_TAG = 0x0112
SHORT = 3
BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block, 1 to 8; 1 where it declares none.

    `exif` starts with the TIFF header, or with "Exif" and two zero bytes before it.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = BYTE_ORDERS.get(exif[:4])
    if order is None:
        return 1
    try:
        return _search_directory(exif, order)
    except struct.error:
        # The block ends early. It is no part of the pixels.
        return 1


def _search_directory(exif: bytes, order: str) -> int:
    (start,) = struct.unpack_from(order + "I", exif, 4)
    (entries,) = struct.unpack_from(order + "H", exif, start)
    for number in range(entries):
        position = start + 2 + 12 * number
        tag, kind, count = struct.unpack_from(order + "HHI", exif, position)
        if tag == ORIENTATION_TAG and kind == SHORT and count == 1:
            (value,) = struct.unpack_from(order + "H", exif, position + 8)
            return int(value) if 1 <= value <= 8 else 1
    return 1


def orient(image: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Turn an image [h, w] or [h, w, 3] upright. `orientation` is the EXIF value, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        image = np.swapaxes(image, 0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
