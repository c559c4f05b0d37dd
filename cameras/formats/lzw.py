"""LZW as in TIFF 6.0, section 13. Everything but a complete and valid stream is refused."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CLEAR = 256
END = 257
FIRST_FREE = 258
CLEAR_BITS = 9
MAX_BITS = 12
# The entry before which codes become one bit wider.
WIDER_FROM = (511, 1023, 2047)
# A table is cleared, at the latest, before its entry 4095.
MOST_CODES = 4096 - FIRST_FREE + 1


def _code_ends() -> npt.NDArray[np.int64]:
    """Return the bit position behind each code that follows a clear code.

    The width of a code depends only on how many entries the table has: every code but the first
    makes one.
    """
    numbers = np.arange(MOST_CODES)
    next_entry = FIRST_FREE + np.maximum(numbers - 1, 0)
    widths = np.full(MOST_CODES, CLEAR_BITS)
    for entry in WIDER_FROM:
        widths[next_entry >= entry] += 1
    return np.cumsum(widths)


CODE_ENDS = _code_ends()


def decode_lzw(data: bytes, size: int) -> bytes:
    """Decompress `data`, which is known to become `size` bytes.

    Raises ValueError for a code that does not exist yet, and for a stream that ends early.
    """
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    if len(bits) < CLEAR_BITS or not bits[0] or bits[1:CLEAR_BITS].any():
        raise ValueError("an LZW stream does not start with a clear code, as in TIFF 6.0")
    output = bytearray()
    position = CLEAR_BITS
    while len(output) < size:
        codes = _codes_of_one_table(bits[position:])
        used = _expand(codes, output, size)
        position += int(CODE_ENDS[used - 1])
    return bytes(output)


def _codes_of_one_table(bits: npt.NDArray[np.uint8]) -> list[int]:
    """Read the codes that follow, as far as one table can reach."""
    count = int(np.searchsorted(CODE_ENDS, len(bits), "right"))
    ends = CODE_ENDS[:count]
    starts = np.concatenate([[0], ends[:-1]])
    widths = ends - starts
    codes = np.zeros(count, np.int64)
    for bit in range(MAX_BITS):
        has_bit = bit < widths
        places = np.minimum(starts + bit, len(bits) - 1)
        codes = np.where(has_bit, codes * 2 + bits[places], codes)
    values: list[int] = codes.tolist()
    return values


def _expand(codes: list[int], output: bytearray, size: int) -> int:
    """Append what the codes of one table stand for; return how many were used, up to a clear code.

    An entry of the table is the text of a code and the first byte of the text after it. These
    bytes follow each other in the output, so an entry is stored as the place of its text there.
    """
    starts: list[int] = []
    for number, code in enumerate(codes, 1):
        if code == CLEAR:
            return number
        start = len(output)
        if code == END:
            break
        if start >= size:
            raise ValueError("an LZW stream does not end where the image does")
        if code < CLEAR:
            output.append(code)
        else:
            _append_entry(code - FIRST_FREE, starts, output)
        starts.append(start)
    if len(output) < size:
        raise ValueError("an LZW stream ends early")
    return len(codes)


def _append_entry(entry: int, starts: list[int], output: bytearray) -> None:
    """Append the text of an entry of the table, which starts at `starts[entry]` of the output."""
    start = len(output)
    if entry >= len(starts):
        raise ValueError("an LZW stream has a code that does not exist yet")
    text_start = starts[entry]
    if entry + 1 < len(starts):
        text_end = starts[entry + 1] + 1
        output += output[text_start:text_end]
        return
    # The entry that is being made: it ends with the first byte of its own text.
    output += output[text_start:start]
    output.append(output[text_start])
