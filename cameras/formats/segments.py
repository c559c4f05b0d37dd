"""The strips and tiles of a TIFF page: decompressed, checked for their size and put together."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.cameras.formats import DecodeError, damaged, truncated
from flawline.cameras.formats.lzw import decode_lzw

CHUNKY = 1
NO_PREDICTOR = 1
HORIZONTAL = 2
FIRST_BIT_IS_HIGHEST = 1


def decode_segments(page: Any, shift: int = 0) -> npt.NDArray[Any]:
    """Return the samples of a page, uint8 or uint16 [h, w, samples], with 1 bit as 0 and 255.

    `page` is a tifffile.TiffPage; its pixels are read `shift` bytes behind their place. Raises
    DecodeError, and ValueError for a damaged stream.
    """
    decompress = _decompressor(page)
    height = page.imagelength
    width = page.imagewidth
    samples = page.samplesperpixel
    planes = 1
    if page.planarconfig != CHUNKY:
        planes = samples
        samples = 1
    rows = min(page.rowsperstrip, height)
    columns = width
    if page.is_tiled:
        rows = page.tilelength
        columns = page.tilewidth
    down = -(-height // rows)
    across = -(-width // columns)
    if len(page.dataoffsets) != planes * down * across:
        raise damaged("TIFF", f"{len(page.dataoffsets)} strips do not make its {height} rows")

    pixel_type = np.uint8 if page.bitspersample in (1, 8) else np.uint16
    image = np.empty((height, width, planes * samples), pixel_type)
    for number in range(planes * down * across):
        plane, place = divmod(number, down * across)
        top = place // across * rows
        left = place % across * columns
        height_here = rows
        if not page.is_tiled:
            height_here = min(rows, height - top)
        size = height_here * _row_size(page, columns * samples)
        content = _content(page, number, shift)
        raw = decompress(content, size)
        if len(raw) != size:
            raise damaged("TIFF", f"strip {number} does not have {size} bytes")
        block = _samples(page, raw, height_here)
        block = block[:, : columns * samples].reshape(height_here, columns, samples)
        if page.predictor == HORIZONTAL:
            block = np.cumsum(block, axis=1, dtype=block.dtype)
        target = image[top : top + rows, left : left + columns, plane : plane + samples]
        target[...] = block[: target.shape[0], : target.shape[1]]
    return image


def _content(page: Any, number: int, shift: int) -> bytes:
    offset = page.dataoffsets[number]
    size = page.databytecounts[number]
    if offset == 0 or size == 0:
        raise damaged("TIFF", f"strip {number} is absent")
    file = page.parent.filehandle
    if shift + offset + size > file.size:
        raise truncated("TIFF")
    file.seek(shift + offset)
    content: bytes = file.read(size)
    if len(content) < size:
        raise truncated("TIFF")
    return content


def _row_size(page: Any, samples: int) -> int:
    """Return the bytes of a row of samples; rows are padded to whole bytes."""
    return int(samples * page.bitspersample + 7) // 8


def _samples(page: Any, raw: bytes, rows: int) -> npt.NDArray[Any]:
    """Return the samples of a segment, [rows, samples of a row], maybe with padding at the end."""
    table = np.frombuffer(raw, np.uint8).reshape(rows, -1)
    bits = page.bitspersample
    if bits == 8:
        return table
    if bits == 16:
        return table.view(f"{page.parent.byteorder}u2").astype(np.uint16)
    if bits == 1:
        black_and_white: npt.NDArray[np.uint8] = np.unpackbits(table, axis=1) * np.uint8(255)
        return black_and_white
    return _unpack_12_bits(table)


def _unpack_12_bits(table: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Unpack two samples from every three bytes, the highest bits first."""
    padding = -table.shape[1] % 3
    groups = np.pad(table, ((0, 0), (0, padding))).reshape(len(table), -1, 3).astype(np.uint16)
    first = groups[..., 0] << 4 | groups[..., 1] >> 4
    second = (groups[..., 1] & 15) << 8 | groups[..., 2]
    return np.stack([first, second], 2).reshape(len(table), -1)


def _decompressor(page: Any) -> Callable[[bytes, int], bytes]:
    """Return the function that decompresses a segment to a known size."""
    decompress = DECOMPRESSORS.get(int(page.compression))
    name = getattr(page.compression, "name", page.compression)
    if decompress is None:
        raise DecodeError(
            f"TIFF with {name} compression is not read; save it uncompressed, with LZW or with ZIP"
        )
    has_predictor = page.predictor != NO_PREDICTOR
    if page.predictor not in (NO_PREDICTOR, HORIZONTAL) or (
        has_predictor and page.bitspersample not in (8, 16)
    ):
        raise DecodeError(f"TIFF with predictor {page.predictor} is not read; save it without one")
    if page.fillorder != FIRST_BIT_IS_HIGHEST:
        raise DecodeError("TIFF with reversed bits is not read; save it with fill order 1")
    return decompress


def _stored(content: bytes, size: int) -> bytes:
    # Some writers pad the last strip to full height.
    return content[:size]


def _inflate(content: bytes, size: int) -> bytes:
    stream = zlib.decompressobj()
    # One byte more than needed, so that the checksum at the end of the stream is reached.
    raw = stream.decompress(content, size + 1)
    if not stream.eof and len(raw) <= size:
        raise ValueError("a ZIP stream ends early")
    return raw


def _unpack_bits(content: bytes, size: int) -> bytes:
    """Decompress PackBits: TIFF 6.0, section 9."""
    output = bytearray()
    position = 0
    while len(output) <= size and position + 1 < len(content):
        count = content[position]
        if count < 128:
            output += content[position + 1 : position + 2 + count]
            position += 2 + count
        elif count > 128:
            output += content[position + 1 : position + 2] * (257 - count)
            position += 2
        else:
            position += 1
    if position > len(content):
        raise ValueError("a PackBits stream ends early")
    return bytes(output)


# Numbers of TIFF 6.0 and of Adobe: none, LZW, ZIP under both of its numbers, PackBits.
DECOMPRESSORS: dict[int, Callable[[bytes, int], bytes]] = {
    1: _stored,
    5: decode_lzw,
    8: _inflate,
    32946: _inflate,
    32773: _unpack_bits,
}
