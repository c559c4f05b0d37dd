"""PGM and PPM with binary pixels (P5 and P6), which are not compressed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.cameras.formats import MAX_PIXELS, DecodeError, damaged, several, truncated

_GAP = rb"(?:\s+|\s*#[^\n]*\n)+"
HEADER = re.compile(rb"P([56])" + _GAP + rb"(\d+)" + _GAP + rb"(\d+)" + _GAP + rb"(\d+)\s")


def decode_pnm(data: bytes) -> npt.NDArray[Any]:
    """Decode a PGM or PPM file: 8 bits for a maximum of 255, 16 bits unscaled for a higher one.

    Raises DecodeError for a file that is damaged or holds several images.
    """
    header = HEADER.match(data[:4096])
    if header is None:
        raise damaged("PNM", "its header is not readable")
    kind, *numbers = header.groups()
    width, height, maximum = map(int, numbers)
    channels = 3 if kind == b"6" else 1
    if width * height == 0 or width * height > MAX_PIXELS:
        raise damaged("PNM", f"its size is {width}x{height}")
    if not 255 <= maximum <= 65535:
        raise DecodeError(
            f"the largest value of the PNM is {maximum}; save it with 8 or 16 bits per pixel"
        )
    pixel_type = np.dtype(">u2" if maximum > 255 else "u1")
    size = width * height * channels * pixel_type.itemsize
    pixels = data[header.end() : header.end() + size]
    if len(pixels) < size:
        raise truncated("PNM")
    rest = data[header.end() + size :]
    if HEADER.match(rest[:4096]) is not None:
        raise several("PNM", 1 + rest.count(data[:3]))
    values = np.frombuffer(pixels, pixel_type)
    if maximum < 65535 and int(values.max()) > maximum:
        raise damaged("PNM", f"it has values above {maximum}")
    native = values.astype(pixel_type.newbyteorder("="))
    if channels == 1:
        return native.reshape(height, width)
    rgb = native.reshape(height, width, 3)
    return np.ascontiguousarray(rgb[..., ::-1])
