"""PNG, decoded by OpenCV after its chunks are checked."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy.typing as npt

from flawline.cameras.formats import damaged, several, truncated
from flawline.cameras.formats.opencv import decode_by_opencv
from flawline.cameras.formats.orientation import exif_orientation, orient

SIGNATURE_SIZE = 8
# Length and name before a chunk's content, checksum behind it.
HEADER_SIZE = 8
CHECKSUM_SIZE = 4
# Chunks that change what is seen, besides those whose name starts with a capital letter.
CHECKED = (b"tRNS", b"eXIf", b"acTL")


def decode_png(data: bytes) -> npt.NDArray[Any]:
    """Decode a PNG file. Raises DecodeError for a damaged file and for an animation."""
    orientation = 1
    animated = 0
    first_frame_is_hidden = False
    frame_controls = 0
    for name, content in _chunks(data):
        if name == b"eXIf":
            orientation = exif_orientation(content)
        elif name == b"acTL":
            animated = _frame_count(content)
        elif name == b"fcTL":
            frame_controls += 1
        elif name == b"IDAT" and frame_controls == 0:
            first_frame_is_hidden = True
    if frame_controls and not animated:
        raise damaged("PNG", "the header of its animation is absent")
    if animated:
        count = animated
        if first_frame_is_hidden:
            count += 1
        if count > 1:
            raise several("PNG", count)
    image = decode_by_opencv(data, "PNG", cv2.IMREAD_UNCHANGED)
    return orient(image, orientation)


def _frame_count(content: bytes) -> int:
    if len(content) < 4:
        raise damaged("PNG", "its animation has no frame count")
    return int.from_bytes(content[:4], "big")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of every chunk up to IEND, whose checksums are right."""
    position = SIGNATURE_SIZE
    while position + HEADER_SIZE + CHECKSUM_SIZE <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        start = position + HEADER_SIZE
        end = start + length
        if end + CHECKSUM_SIZE > len(data):
            break
        content = data[start:end]
        is_critical = name[:1].isupper()
        if is_critical or name in CHECKED:
            (checksum,) = struct.unpack_from(">I", data, end)
            if zlib.crc32(content, zlib.crc32(name)) != checksum:
                raise damaged("PNG", f"the checksum of {name.decode('latin-1')!r} is wrong")
        if name == b"IEND":
            return
        yield name, content
        position = end + CHECKSUM_SIZE
    raise truncated("PNG")
