"""Whether a video file ends before its container does."""

from __future__ import annotations

import os


def missing_end(path: str) -> bool:
    """Tell whether a file of the RIFF (AVI) or Matroska (MKV, WebM) kind was cut off.

    The decoder takes the end of such a file for the end of the video. Other containers either
    report it or have no declared end, as MPEG-TS.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(4096)
    if start.startswith(b"RIFF"):
        declared = int.from_bytes(start[4:8], "little")
        # Zero where the recording was never completed.
        return declared == 0 or 8 + declared > size
    if start.startswith(b"\x1a\x45\xdf\xa3"):
        declared_end = _matroska_end(start)
        return declared_end is not None and declared_end > size
    return False


def _matroska_end(start: bytes) -> int | None:
    """Return where the segment ends, from the two element headers of RFC 8794; None if unknown."""
    position = 0
    for identifier in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        if start[position : position + 4] != identifier:
            return None
        position += 4
        if position >= len(start) or start[position] == 0:
            return None
        length = 9 - start[position].bit_length()
        value = int.from_bytes(start[position : position + length], "big")
        value &= (1 << 7 * length) - 1
        if value == (1 << 7 * length) - 1:
            return None
        position += length + value
    return position
