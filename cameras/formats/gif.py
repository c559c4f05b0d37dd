"""GIF, which is refused: nothing in the file shows whether its pixels are whole."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from flawline.cameras.formats import DecodeError, several, truncated

HEADER_SIZE = 13
COLOUR_TABLE = 0x80
EXTENSION = 0x21
IMAGE = 0x2C
TRAILER = 0x3B


def decode_gif(data: bytes) -> npt.NDArray[Any]:
    """Raise DecodeError with the number of images in the file."""
    count = 0
    try:
        position = HEADER_SIZE + _table_size(data[10])
        while data[position] != TRAILER:
            if data[position] == EXTENSION:
                position = _after_blocks(data, position + 2)
                continue
            if data[position] != IMAGE:
                raise truncated("GIF")
            count += 1
            table = _table_size(data[position + 9])
            position = _after_blocks(data, position + 10 + table + 1)
    except IndexError as error:
        raise truncated("GIF") from error
    if count > 1:
        raise several("GIF", count)
    raise DecodeError("GIF is not read, because it does not show damage; save it as PNG")


def _table_size(flags: int) -> int:
    """Return the bytes of a colour table."""
    if not flags & COLOUR_TABLE:
        return 0
    colours = 2 << (flags & 7)
    return 3 * colours


def _after_blocks(data: bytes, position: int) -> int:
    """Return the position behind a chain of blocks, each of which starts with its length."""
    while data[position] != 0:
        position += 1 + data[position]
    return position + 1
