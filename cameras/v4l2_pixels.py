"""The pixel formats of Video4Linux, by their FOURCC names, and how their buffers become images.

A buffer of the driver becomes uint8 or uint16 pixels, mono [h, w] or BGR [h, w, 3], in one pass: as
a copy or as a conversion. Mono pixels keep their number of bits. Damage in a JPEG is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawline.cameras.formats import DecodeError
from flawline.cameras.formats.jpeg import decode_jpeg
from flawline.cameras.genicam_pixels import PixelFormat, parse_pixel_format

Bytes = npt.NDArray[np.uint8]

# FOURCC -> the same pixels in the names of machine vision.
RAW = {
    "GREY": "Mono8",
    "Y10": "Mono10",
    "Y12": "Mono12",
    "Y14": "Mono14",
    "Y16": "Mono16",
    "BA81": "BayerBG8",
    "GBRG": "BayerGB8",
    "GRBG": "BayerGR8",
    "RGGB": "BayerRG8",
    "BG10": "BayerBG10",
    "GB10": "BayerGB10",
    "BA10": "BayerGR10",
    "RG10": "BayerRG10",
    "BG12": "BayerBG12",
    "GB12": "BayerGB12",
    "BA12": "BayerGR12",
    "RG12": "BayerRG12",
    "BYR2": "BayerBG16",
    "GB16": "BayerGB16",
    "GR16": "BayerGR16",
    "RG16": "BayerRG16",
    "RGB3": "RGB8",
    "BGR3": "BGR8",
    "AB24": "RGBa8",
    "AR24": "BGRa8",
    "XB24": "RGBa8",
    "XR24": "BGRa8",
}
# FOURCC -> conversion. Each pixel has its luma byte and a chroma byte.
PACKED_YUV = {
    "YUYV": cv2.COLOR_YUV2BGR_YUYV,
    "YVYU": cv2.COLOR_YUV2BGR_YVYU,
    "UYVY": cv2.COLOR_YUV2BGR_UYVY,
}
# The rows of the chroma, of half the number and the same length, follow those of the luma.
PLANAR_YUV = {
    "NV12": cv2.COLOR_YUV2BGR_NV12,
    "NV21": cv2.COLOR_YUV2BGR_NV21,
    "YU12": cv2.COLOR_YUV2BGR_I420,
    "YV12": cv2.COLOR_YUV2BGR_YV12,
}
# The chroma rows of these have half the length, and no padding of their own.
WITHOUT_PADDING = ("YU12", "YV12")
COMPRESSED = ("MJPG", "JPEG")
READ = (*RAW, *PACKED_YUV, *PLANAR_YUV, *COMPRESSED)


def fourcc_name(code: int) -> str:
    """Return the name of a FOURCC number without the spaces at its end."""
    name = "".join(chr(code >> shift & 0x7F) for shift in (0, 8, 16, 24)).rstrip(" ")
    # The highest bit stands for the other byte order.
    return f"{name}-BE" if code >> 31 else name


def fourcc_code(name: str) -> int:
    """Return the number of a FOURCC name, which may be without the spaces at its end."""
    return int.from_bytes(name.ljust(4).encode("ascii"), "little")


def bits_of(name: str) -> int:
    """Return the number of significant bits per value of a format that is read."""
    if name not in RAW:
        return 8
    return _raw_format(name).bits


@cache
def _raw_format(name: str) -> PixelFormat:
    """Return the pixel format of a name of RAW."""
    pixels = parse_pixel_format(RAW[name])
    assert pixels is not None
    return pixels


@dataclass(frozen=True)
class BufferFormat:
    """What the buffers of a camera hold: FOURCC, pixels per row, rows, and bytes per row.

    `decode_picture` reads those of COMPRESSED, and `image` all others.
    """

    name: str
    width: int
    height: int
    row_bytes: int

    def image(self, data: Bytes) -> npt.NDArray[Any]:
        """Return the image of a buffer, uint8 [bytes], as a new array.

        Raises ValueError if the buffer is too short or cannot be read.
        """
        if self.name in RAW:
            pixels = _raw_format(self.name)
            padding = max(0, self.row_bytes - pixels.row_bytes(self.width))
            return pixels.image(data, self.width, self.height, padding)
        if self.name in PACKED_YUV:
            rows = self._rows(data, self.height, 2 * self.width)
            return cv2.cvtColor(rows.reshape(self.height, self.width, 2), PACKED_YUV[self.name])
        rows = self._rows(data, self.height * 3 // 2, self.width)
        if self.name in WITHOUT_PADDING and rows.strides[0] != self.width:
            raise ValueError(f"its rows of {self.name} are padded; give another pixel_format")
        return cv2.cvtColor(rows, PLANAR_YUV[self.name])

    def _rows(self, data: Bytes, rows: int, used: int) -> Bytes:
        """Return rows of so many bytes without their padding, as a view."""
        stride = max(self.row_bytes, used)
        needed = rows * stride
        if data.size < needed:
            raise ValueError(
                f"the buffer holds {data.size} bytes, not the {needed} of "
                f"{self.width}x{self.height} pixels of {self.name}"
            )
        return data[:needed].reshape(rows, stride)[:, :used]


def decode_picture(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode a JPEG picture of a camera. Raises ValueError for damage in any part of it."""
    if not data.startswith(b"\xff\xd8"):
        raise ValueError("the buffer holds no JPEG picture")
    try:
        return decode_jpeg(data)
    except DecodeError as error:
        # What follows is the remedy for a file.
        raise ValueError(str(error).partition(";")[0]) from None
