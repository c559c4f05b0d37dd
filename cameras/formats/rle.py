"""A check of run-length encoded BMP pixels, whose damage OpenCV does not notice."""

from __future__ import annotations

from flawline.cameras.formats import DecodeError, damaged, truncated

END_OF_LINE = 0
END_OF_IMAGE = 1
DELTA = 2


def check_rle(data: bytes, width: int, height: int, bits: int) -> None:
    """Check that RLE8 or RLE4 data fill every pixel of every row.

    Raises DecodeError for data that end early, leave a row or leave pixels undefined.
    """
    position = 0
    row = 0
    column = 0
    while position + 2 <= len(data):
        count = data[position]
        value = data[position + 1]
        position += 2
        if count == 0 and value == DELTA:
            raise DecodeError("the BMP leaves pixels undefined; save it as PNG")
        if count == 0 and value <= END_OF_IMAGE:
            if column not in (0, width) or (column == 0 and value == END_OF_LINE):
                raise damaged("BMP", f"row {row} ends after {column} of {width} pixels")
            row += int(column == width)
            column = 0
            if value == END_OF_IMAGE:
                break
            continue
        if count == 0:
            # Pixels that are stored one by one, padded to an even number of bytes.
            count = value
            size = (value * bits + 7) // 8
            position += size + size % 2
        column += count
        if column > width or row >= height:
            raise damaged("BMP", f"row {row} has more than {width} pixels")
    if position > len(data) or row < height:
        raise truncated("BMP")
