"""WebP, decoded by OpenCV after its chunks are checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy.typing as npt

from flawline.cameras.formats import damaged, several, truncated
from flawline.cameras.formats.opencv import decode_by_opencv
from flawline.cameras.formats.orientation import exif_orientation, orient

HEADER_SIZE = 12


def decode_webp(data: bytes) -> npt.NDArray[Any]:
    """Decode a WebP file. Raises DecodeError for a damaged file and for an animation."""
    orientation = 1
    frames = 0
    images = 0
    for name, content in _chunks(data):
        if name == b"EXIF":
            orientation = exif_orientation(content)
        elif name == b"ANMF":
            frames += 1
        elif name in (b"VP8 ", b"VP8L"):
            images += 1
    count = max(frames, images)
    if count > 1:
        raise several("WebP", count)
    if count == 0:
        raise damaged("WebP", "it holds no image")
    image = decode_by_opencv(data, "WebP", cv2.IMREAD_UNCHANGED)
    return orient(image, orientation)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of every chunk inside the RIFF container."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise truncated("WebP")
    position = HEADER_SIZE
    while position + 8 <= end:
        name = data[position : position + 4]
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        start = position + 8
        if start + length > end:
            raise damaged("WebP", "a chunk is longer than the file")
        yield name, data[start : start + length]
        # Chunks are padded to an even length.
        position = start + length + length % 2
