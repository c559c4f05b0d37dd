"""The pixel formats of machine-vision cameras, by the names of GenICam's PFNC.

Only numpy and OpenCV are needed. A buffer becomes uint8 or uint16 pixels, mono [h, w] or BGR
[h, w, 3], as a new array: the camera's driver fills its buffers again.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

# The first two pixels of the first row, and what OpenCV calls the pattern of four pixels. Its older
# names, such as COLOR_BayerRG2BGR, mean the second row and column, which is another pattern.
BAYER = {
    "RG": cv2.COLOR_BayerRGGB2BGR,
    "GR": cv2.COLOR_BayerGRBG2BGR,
    "GB": cv2.COLOR_BayerGBRG2BGR,
    "BG": cv2.COLOR_BayerBGGR2BGR,
}
# What the option `mosaic` calls the patterns.
PATTERNS = {"RG": "rggb", "GR": "grbg", "GB": "gbrg", "BG": "bggr"}
# A fourth channel is left out.
COLOUR = {
    "RGB": cv2.COLOR_RGB2BGR,
    "BGR": None,
    "RGBa": cv2.COLOR_RGBA2BGR,
    "BGRa": cv2.COLOR_BGRA2BGR,
    "RGBA": cv2.COLOR_RGBA2BGR,
    "BGRA": cv2.COLOR_BGRA2BGR,
}
NAME = re.compile(
    r"(?P<kind>Mono|Bayer(?P<bayer>RG|GR|GB|BG)|RGBa|BGRa|RGBA|BGRA|RGB|BGR)"
    r"(?P<bits>8|10|12|14|16)(?P<packing>p|Packed|packed)?"
)
SUPPORTED = (
    "Mono and Bayer of 8, 10, 12, 14 and 16 bits, also packed, and RGB, BGR, RGBa and BGRa of 8 "
    "and 16 bits"
)


@dataclass(frozen=True)
class PixelFormat:
    """A pixel format, and how its buffers become images.

    `bits` is the number of significant bits per channel. `packing` is "" for whole bytes, "p" for a
    stream of bits, lowest first, and "Packed" for GigE Vision's three bytes per two pixels.
    """

    name: str
    bits: int
    bayer: str | None
    colour: str | None
    packing: str

    @property
    def channels(self) -> int:
        """Values per pixel in the buffer."""
        return 1 if self.colour is None else len(self.colour)

    def row_bytes(self, width: int) -> int:
        """Return the size of a row without padding; packed pixels end in the middle of a byte."""
        return (width * self.channels * self._stored_bits + 7) // 8

    @property
    def _stored_bits(self) -> int:
        """Bits per value in the buffer."""
        if self.packing == "p":
            return self.bits
        if self.packing == "Packed":
            return 12
        return 8 * ((self.bits + 7) // 8)

    def image(
        self,
        buffer: npt.NDArray[np.uint8],
        width: int,
        height: int,
        padding: int = 0,
        is_kept: bool = False,
    ) -> npt.NDArray[Any]:
        """Return the image of a buffer, uint8 [bytes], as a new array.

        `padding` is the number of bytes at the end of each row. With `is_kept`, no one writes to
        the buffer again, and the image may be a view of it. Raises ValueError for a buffer that is
        too short.
        """
        values = self._values(buffer, width, height, padding)
        code = None
        if self.bayer is not None:
            code = BAYER[self.bayer]
        elif self.colour is not None:
            code = COLOUR[self.colour]
        if code is not None:
            return cv2.cvtColor(values, code)
        # Unpacking makes a new array.
        if not self.packing and not is_kept:
            values = values.copy()
        image: npt.NDArray[Any] = np.ascontiguousarray(values)
        return image

    def _values(
        self, buffer: npt.NDArray[np.uint8], width: int, height: int, padding: int
    ) -> npt.NDArray[Any]:
        """Return the values of a buffer, [h, w] or [h, w, channels], as a view where possible."""
        row = width * self.channels
        # Rows without padding follow each other within a byte.
        rows = height
        if self.packing and not padding:
            row *= height
            rows = 1
        stored = (row * self._stored_bits + 7) // 8
        needed = rows * (stored + padding) - padding
        if buffer.size < needed:
            raise ValueError(
                f"the buffer holds {buffer.size} bytes, not the {needed} of {width}x{height} "
                f"pixels of {self.name}"
            )
        # A view without the padding, which the last row need not have.
        steps = (stored + padding, 1)
        data = as_strided(buffer[:needed], (rows, stored), steps, writeable=False)
        values: npt.NDArray[Any] = data
        if self.packing:
            values = self._unpack(data, row)
        elif self.bits > 8:
            if steps[0] % 2:
                # OpenCV does not convert 16-bit rows that begin at odd bytes.
                data = np.ascontiguousarray(data)
            values = data.view("<u2")
        shape = (height, width) if self.channels == 1 else (height, width, self.channels)
        return values.reshape(shape)

    def _unpack(self, data: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.uint16]:
        """Return `count` values per row of packed data, uint8 [rows, bytes]."""
        if self.packing == "Packed":
            return _unpack_gige(data, count, self.bits)
        return _unpack_stream(data, count, self.bits)


def _unpack_stream(data: npt.NDArray[np.uint8], count: int, bits: int) -> npt.NDArray[np.uint16]:
    """Unpack values that follow each other bit by bit, lowest bit first."""
    # The smallest group of values that ends with a byte.
    together = 8 // math.gcd(bits, 8)
    size = together * bits // 8
    missing = -data.shape[1] % size
    if missing:
        data = np.pad(data, ((0, 0), (0, missing)))
    groups = data.reshape(len(data), -1, size)
    values = np.empty((*groups.shape[:2], together), np.uint16)
    for index in range(together):
        byte, shift = divmod(index * bits, 8)
        value = groups[..., byte].astype(np.uint32)
        for following in range(1, (shift + bits + 7) // 8):
            value |= groups[..., byte + following].astype(np.uint32) << 8 * following
        values[..., index] = value >> shift & (1 << bits) - 1
    return values.reshape(len(data), -1)[:, :count]


def _unpack_gige(data: npt.NDArray[np.uint8], count: int, bits: int) -> npt.NDArray[np.uint16]:
    """Unpack two pixels from three bytes: the high bits of each, and between them the low bits."""
    missing = -data.shape[1] % 3
    if missing:
        data = np.pad(data, ((0, 0), (0, missing)))
    triples = data.reshape(len(data), -1, 3).astype(np.uint16)
    low = bits - 8
    mask = (1 << low) - 1
    pairs = np.empty((*triples.shape[:2], 2), np.uint16)
    pairs[..., 0] = triples[..., 0] << low | triples[..., 1] & mask
    pairs[..., 1] = triples[..., 2] << low | triples[..., 1] >> 4 & mask
    return pairs.reshape(len(data), -1)[:, :count]


def parse_pixel_format(name: str) -> PixelFormat | None:
    """Return the pixel format of a name, such as Mono12 or BayerRG8; None if it is not read."""
    match = NAME.fullmatch(name)
    if match is None:
        return None
    bits = int(match["bits"])
    bayer = match["bayer"]
    colour = match["kind"] if match["kind"] in COLOUR else None
    packing = match["packing"] or ""
    if colour is not None:
        # The older names of colour formats say with "Packed" that the channels alternate.
        if bits not in (8, 16) or packing == "p":
            return None
        packing = ""
    elif packing in ("Packed", "packed"):
        packing = "Packed"
        if bits not in (10, 12):
            return None
    if bits in (8, 16):
        packing = ""
    return PixelFormat(name, bits, bayer, colour, packing)
