"""A check of H.264 and H.265 packets that the decoder does not make.

Both codecs never write certain bytes inside a unit (emulation prevention, section 7.4.1 of ITU-T
H.264), so bytes that were lost to zeros are recognised. The decoder skips them and shows what the
frames before them left.
"""

from __future__ import annotations

import re

# Inside a unit two zero bytes are followed by 3 or more.
FORBIDDEN = re.compile(rb"\x00\x00[\x00\x01\x02]", re.DOTALL)
# Between units there is a start code, with more zeros before it; at the end of a packet, zeros.
FORBIDDEN_WITH_START_CODES = re.compile(rb"\x00\x00\x02|\x00\x00\x00+[^\x00\x01]", re.DOTALL)
# Position of the byte that holds the size of the length field, in the header of the stream.
LENGTH_FIELD = {"h264": 4, "hevc": 21}


def units_are_damaged(packet: bytes, codec: str, header: bytes) -> bool:
    """Tell whether a packet of `codec` cannot be whole; False for every other codec.

    `header` is the codec's extradata, which says how units are separated.
    """
    place = LENGTH_FIELD.get(codec)
    if place is None:
        return False
    if len(header) <= place or header[0] != 1:
        return FORBIDDEN_WITH_START_CODES.search(packet) is not None
    return _lengths_are_wrong(packet, (header[place] & 3) + 1)


def _lengths_are_wrong(packet: bytes, length_size: int) -> bool:
    """Check units that start with their length."""
    position = 0
    while position < len(packet):
        start = position + length_size
        length = int.from_bytes(packet[position:start], "big")
        position = start + length
        if length == 0 or position > len(packet):
            return True
        if FORBIDDEN.search(packet, start, position) is not None:
            return True
    return False
