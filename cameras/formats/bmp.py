"""BMP. Pixels of 16 and 32 bits are decoded here, others by OpenCV after the file is checked."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawline.cameras.formats import MAX_PIXELS, DecodeError, damaged, truncated
from flawline.cameras.formats.opencv import decode_by_opencv
from flawline.cameras.formats.rle import check_rle

FILE_HEADER_SIZE = 14
CORE_HEADER_SIZE = 12
PLAIN = 0
RLE = {1: 8, 2: 4}
BITFIELDS = (3, 6)
# Red, green and blue where the file does not declare its own.
DEFAULT_MASKS = {16: (0x7C00, 0x3E0, 0x1F), 32: (0xFF0000, 0xFF00, 0xFF)}


@dataclass(frozen=True)
class Header:
    """What the header of a BMP file declares. `palette` is where the palette starts."""

    width: int
    height: int
    top_down: bool
    bits: int
    compression: int
    colours: int
    pixels: int
    palette: int
    palette_entry: int
    masks: tuple[int, ...]

    @property
    def row_size(self) -> int:
        """Bytes per row, padded to a multiple of four."""
        return (self.width * self.bits + 31) // 32 * 4


def decode_bmp(data: bytes) -> npt.NDArray[Any]:
    """Decode a BMP file. Raises DecodeError for a truncated or damaged file.

    The file size in the header is not compared, because many writers set it wrong. The size of the
    pixels is known from the width, the height and the bits per pixel.
    """
    try:
        header = _read_header(data)
    except struct.error as error:
        raise truncated("BMP") from error
    if header.width <= 0 or header.height == 0 or header.width * header.height > MAX_PIXELS:
        raise damaged("BMP", f"its size is {header.width}x{header.height}")
    if header.bits not in (1, 4, 8, 16, 24, 32):
        raise damaged("BMP", f"it declares {header.bits} bits per pixel")
    if header.pixels < header.palette:
        raise damaged("BMP", "its pixels start inside the header")
    if header.compression in RLE:
        if RLE[header.compression] != header.bits:
            raise damaged("BMP", "its compression does not fit its bits per pixel")
        check_rle(data[header.pixels :], header.width, header.height, header.bits)
    elif header.compression in (PLAIN, *BITFIELDS):
        if len(data) < header.pixels + header.row_size * header.height:
            raise truncated("BMP")
    else:
        raise DecodeError(f"BMP compression {header.compression} is not read; save it as PNG")
    if header.bits <= 8:
        _check_palette(header, data)
    if header.bits in DEFAULT_MASKS:
        return _decode_by_masks(header, data)
    return decode_by_opencv(data, "BMP", cv2.IMREAD_UNCHANGED)


def _read_header(data: bytes) -> Header:
    masks: tuple[int, ...]
    pixels, header_size = struct.unpack_from("<II", data, 10)
    if header_size == CORE_HEADER_SIZE:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        palette = FILE_HEADER_SIZE + header_size
        colours = 1 << min(bits, 8)
        masks = DEFAULT_MASKS.get(bits, ())
        return Header(width, height, False, bits, PLAIN, colours, pixels, palette, 3, masks)
    if header_size < 40:
        raise damaged("BMP", f"its header has {header_size} bytes")
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    (colours,) = struct.unpack_from("<I", data, 46)
    palette = FILE_HEADER_SIZE + header_size
    masks = DEFAULT_MASKS.get(bits, ())
    if compression in BITFIELDS:
        count = 3
        if header_size >= 56 or compression == 6:
            count = 4
        masks = struct.unpack_from(f"<{count}I", data, 54)
        if header_size == 40:
            palette += 4 * count
    if colours == 0 and bits <= 8:
        colours = 1 << bits
    return Header(
        width, abs(height), height < 0, bits, compression, colours, pixels, palette, 4, masks
    )


def _check_palette(header: Header, data: bytes) -> None:
    """Check that every pixel has an entry in the palette, and that the palette is complete."""
    end = header.palette + header.colours * header.palette_entry
    if header.colours > 1 << header.bits or end > header.pixels:
        raise damaged("BMP", f"its palette of {header.colours} colours has no room")
    if header.compression != PLAIN or header.colours == 1 << header.bits:
        return
    size = header.row_size * header.height
    rows = np.frombuffer(data, np.uint8, size, header.pixels).reshape(header.height, -1)
    if header.bits == 8:
        indices = rows[:, : header.width]
    elif header.bits == 4:
        indices = np.stack([rows >> 4, rows & 15], 2).reshape(header.height, -1)
    else:
        indices = np.unpackbits(rows, axis=1)
    largest = int(indices[:, : header.width].max())
    if largest >= header.colours:
        raise damaged("BMP", f"colour {largest} is not in its palette of {header.colours}")


def _decode_by_masks(header: Header, data: bytes) -> npt.NDArray[np.uint8]:
    """Decode 16 or 32 bits per pixel. Bits that no mask covers are unused, and not transparency."""
    size = header.row_size * header.height
    rows = np.frombuffer(data, np.uint8, size, header.pixels).reshape(header.height, -1)
    values = rows.view(f"<u{header.bits // 8}")[:, : header.width].astype(np.uint32)
    red, green, blue = header.masks[:3]
    channels = [_channel(values, blue), _channel(values, green), _channel(values, red)]
    if len(header.masks) == 4 and header.masks[3] != 0:
        channels.append(_channel(values, header.masks[3]))
    image = np.stack(channels, 2)
    if not header.top_down:
        image = image[::-1]
    return np.ascontiguousarray(image)


def _channel(values: npt.NDArray[np.uint32], mask: int) -> npt.NDArray[np.uint8]:
    """Return the bits of a mask, scaled to 8 bits."""
    lowest = mask & -mask
    largest = mask // max(lowest, 1)
    # Up to 8 bits in a row.
    if largest not in (31, 63, 127, 255):
        raise DecodeError(f"BMP with the bit mask {mask:08x} is not read; save it as PNG")
    field = (values & mask) // lowest
    scaled: npt.NDArray[np.uint8] = (field * 255 // largest).astype(np.uint8)
    return scaled
