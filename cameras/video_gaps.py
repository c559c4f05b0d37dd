"""Places in a Matroska, FLV or AVI file where frames were lost because the structure is broken.

FFmpeg skips such a place and continues with the next frame that it recognises, without a report.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator

EBML = 0x1A45DFA3
CLUSTER = b"\x1f\x43\xb6\x75"
CLUSTER_ID = 0x1F43B675
# Elements of RFC 9559 that hold the blocks and the track numbers.
TRACK_NUMBER = 0xD7
BLOCKS = (0xA3, 0xA1)
OPENED = (0x18538067, CLUSTER_ID, 0x1654AE6B, 0xAE, 0xA0)
# All others that occur directly in an opened one.
SKIPPED = frozenset(
    (
        *(EBML, 0x114D9B74, 0x1549A966, 0x1C53BB6B, 0x1043A770, 0x1254C367, 0x1941A469),
        *(0xEC, 0xBF, 0xE7, 0xA7, 0xAB, 0x5854, 0xAF, 0x9B, 0xFB, 0xFA, 0xA4, 0xA6, 0x75A1),
        *(0x75A2, 0x8E, 0xC8, 0xFD, TRACK_NUMBER, *BLOCKS),
    )
)
# A size of which all bits are one.
UNKNOWN_SIZE = 1 << 56

FLV_HEADER = 9
FLV_TAG = 11
FLV_TYPES = (8, 9, 18)

# The header of a chunk or a list of RIFF, and of a list with its type.
RIFF_HEADER = 8
RIFF_LIST = 12
# Lists that hold the chunks of the streams; the others are skipped as a whole.
AVI_OPENED = (b"AVI ", b"AVIX", b"movi", b"rec ")
AVI_CHUNK = re.compile(rb"\d\d(dc|db|wb|pc|tx)|ix\d\d|JUNK|idx1|LIST|RIFF", re.DOTALL)
AVI_FRAME = re.compile(rb"\d\d(dc|db|wb)", re.DOTALL)

Data = mmap.mmap


def find_gaps(path: str) -> list[int]:
    """Return the byte positions where the structure of a file is broken; [] for other formats."""
    if os.path.getsize(path) < FLV_HEADER + FLV_TAG:
        return []
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] == b"\x1a\x45\xdf\xa3":
            return list(_matroska_gaps(data))
        if data[:4] == b"FLV\x01":
            return list(_flv_gaps(data))
        if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
            return list(_avi_gaps(data))
    return []


def _matroska_gaps(data: Data) -> Iterator[int]:
    tracks: set[int] = set()
    is_header = True
    # Where the current cluster ends; a live recording does not say so.
    limit = len(data)
    position = 0
    while position < len(data):
        identifier, start = _number(data, position, keep_marker=True)
        size, content = _number(data, start)
        end = content + size
        if identifier == CLUSTER_ID:
            is_header = False
            limit = end if size < UNKNOWN_SIZE else len(data)
        if identifier in OPENED:
            position = content
            continue
        if identifier == TRACK_NUMBER and is_header:
            tracks.add(int.from_bytes(data[content:end], "big"))
        if position >= limit:
            limit = len(data)
        is_known = is_header or identifier in SKIPPED
        is_foreign = identifier in BLOCKS and _number(data, content)[0] not in tracks
        if is_known and not is_foreign and content > start and end <= limit:
            position = end
            continue
        next_cluster = data.find(CLUSTER, position + 1)
        if next_cluster < 0 and end > len(data) and is_known:
            # The last element of a file that was cut off.
            return
        yield position
        if next_cluster < 0:
            return
        position = next_cluster


def _number(data: Data, position: int, keep_marker: bool = False) -> tuple[int, int]:
    """Return a number of variable length (RFC 8794, section 4) and the position behind it."""
    if position >= len(data) or data[position] == 0:
        return 0, position
    length = 9 - data[position].bit_length()
    number = int.from_bytes(data[position : position + length], "big")
    unknown = (1 << 7 * length) - 1
    if keep_marker:
        return number, position + length
    number &= unknown
    return UNKNOWN_SIZE if number == unknown else number, position + length


def _flv_gaps(data: Data) -> Iterator[int]:
    position = int.from_bytes(data[5:9], "big") + 4
    while position + FLV_TAG <= len(data):
        end = _end_of_tag(data, position)
        if end is not None:
            position = end
            continue
        yield position
        position += 1
        while position + FLV_TAG <= len(data) and _end_of_tag(data, position) is None:
            position += 1


def _end_of_tag(data: Data, position: int) -> int | None:
    """Return where the next tag starts, or None where there is no tag at `position`."""
    if data[position] not in FLV_TYPES:
        return None
    size = FLV_TAG + int.from_bytes(data[position + 1 : position + 4], "big")
    end = position + size
    if end + 4 > len(data):
        # The last tag of a file that was cut off.
        return len(data)
    if int.from_bytes(data[end : end + 4], "big") != size:
        return None
    return end + 4


def _avi_gaps(data: Data) -> Iterator[int]:
    position = 0
    while position + RIFF_HEADER <= len(data):
        end = _end_of_chunk(data, position)
        if end is not None and end <= len(data):
            position = end
            continue
        found = _next_frame(data, position + 1)
        if end is not None and found is None:
            # The last chunk of a file that was cut off.
            return
        yield position
        if found is None:
            return
        position = found


def _end_of_chunk(data: Data, position: int) -> int | None:
    """Return where the next chunk starts, or None where there is no chunk at `position`."""
    if AVI_CHUNK.match(data, position) is None:
        return None
    name = data[position : position + 4]
    if name in (b"LIST", b"RIFF") and data[position + 8 : position + 12] in AVI_OPENED:
        return position + RIFF_LIST
    size = int.from_bytes(data[position + 4 : position + 8], "little")
    # Chunks start at even positions.
    return position + RIFF_HEADER + size + size % 2


def _next_frame(data: Data, position: int) -> int | None:
    """Return the position of the next chunk that another chunk, or the end, follows."""
    for match in AVI_FRAME.finditer(data, position):
        end = _end_of_chunk(data, match.start())
        if end is None:
            continue
        if end >= len(data) or _end_of_chunk(data, end) is not None:
            return match.start()
    return None
