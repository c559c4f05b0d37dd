"""The checksums of FFV1 frames, which FFmpeg checks but does not report.

RFC 9043, section 4.9: a frame is a sequence of slices. Each ends with its size (3 bytes), an error
status (1 byte) and a checksum (4 bytes) that makes the CRC of the whole slice zero. Frames without
checksums end with the size alone.
"""

from __future__ import annotations

import zlib

FOOTER = 8
# zlib computes the CRC over reversed bits, which is zero for the same slices.
REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
# Its initial value, and the inverse of its result, are zero in FFV1.
INITIAL = 0xFFFFFFFF


def slices_are_sound(packet: bytes) -> bool:
    """Tell whether a packet consists of slices with a right checksum each."""
    end = len(packet)
    reversed_bits = packet.translate(REVERSED)
    while end > 0:
        size = int.from_bytes(packet[end - FOOTER : end - FOOTER + 3], "big") + FOOTER
        start = end - size
        if end < FOOTER or start < 0:
            return False
        if zlib.crc32(reversed_bits[start:end], INITIAL) != INITIAL:
            return False
        end = start
    return True
