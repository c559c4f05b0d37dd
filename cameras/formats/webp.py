"""WebP, decoded by OpenCV after its chunks are checked."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawline.cameras.formats import DecodeError, damaged, several, truncated
from flawline.cameras.formats.opencv import decode_by_opencv
from flawline.cameras.formats.orientation import exif_orientation, orient

HEADER_SIZE = 12
FRAME_HEADER_SIZE = 16
# Chunks of the image itself: lossy, lossless, and the transparency of a lossy image.
LOSSY = b"VP8 "
LOSSLESS = b"VP8L"
ALPHA = b"ALPH"
EXTENDED = b"VP8X"
# Flags of the extended header: the file has transparency, and is an animation.
HAS_ALPHA = 16
IS_ANIMATION = 2
# Flag of a frame: its pixels replace the background.
DO_NOT_BLEND = 2
LOSSLESS_SIGNATURE = 0x2F
LOSSY_SIGNATURE = b"\x9d\x01\x2a"


def decode_webp(data: bytes) -> npt.NDArray[Any]:
    """Decode a WebP file. Raises DecodeError for a damaged file and for an animation."""
    orientation = 1
    frames = 0
    canvas = b""
    image: list[tuple[bytes, bytes]] = []
    for name, content in _chunks(data):
        if name == b"EXIF":
            orientation = exif_orientation(content)
        elif name == b"ANMF":
            frames += 1
            image = list(_chunks_between(content, FRAME_HEADER_SIZE, len(content)))
        elif name in (LOSSY, LOSSLESS, ALPHA):
            image.append((name, content))
        elif name == EXTENDED:
            canvas = content[4:]
    if frames > 1:
        raise several("WebP", frames)
    _require_one_image(image, canvas)
    if not _animations_are_decoded():
        raise DecodeError(
            f"OpenCV {cv2.__version__} hides damage in WebP files; "
            f"update OpenCV to 4.11 or later, or save the image as PNG"
        )
    decoded = decode_by_opencv(_animation_of(image), "WebP", cv2.IMREAD_UNCHANGED)
    return orient(decoded, orientation)


@cache
def _animations_are_decoded() -> bool:
    """Tell whether this OpenCV decodes animations, as it does from version 4.11 on."""
    grey = np.zeros((8, 8, 3), np.uint8)
    encoded = cv2.imencode(".webp", grey, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    image = []
    for name, content in _chunks(encoded):
        if name in (LOSSY, LOSSLESS, ALPHA):
            image.append((name, content))
    animation = np.frombuffer(_animation_of(image), np.uint8)
    return cv2.imdecode(animation, cv2.IMREAD_UNCHANGED) is not None


def _require_one_image(image: list[tuple[bytes, bytes]], canvas: bytes) -> None:
    """Raise DecodeError unless the chunks make one image, of the size in the extended header."""
    names = [name for name, _ in image]
    if names not in ([LOSSY], [LOSSLESS], [ALPHA, LOSSY]):
        raise damaged("WebP", "it does not hold exactly one image")
    width, height = _size(*image[-1])
    if canvas and canvas != _24_bits(width - 1) + _24_bits(height - 1):
        raise damaged("WebP", "two sizes are declared")


def _animation_of(image: list[tuple[bytes, bytes]]) -> bytes:
    """Return an animation of one frame with the same image.

    OpenCV, up to 5.0 at least, does not notice that libwebp failed to decode a plain WebP file, and
    gives what was in memory. It does notice it in an animation.
    """
    width, height = _size(*image[-1])
    frame = bytes(6) + _24_bits(width - 1) + _24_bits(height - 1)
    frame += bytes([0, 0, 0, DO_NOT_BLEND])
    for name, content in image:
        frame += _chunk(name, content)
    flags = bytes([HAS_ALPHA | IS_ANIMATION, 0, 0, 0])
    chunks = _chunk(EXTENDED, flags + _24_bits(width - 1) + _24_bits(height - 1))
    chunks += _chunk(b"ANIM", bytes(6))
    chunks += _chunk(b"ANMF", frame)
    return _chunk(b"RIFF", b"WEBP" + chunks)


def _size(name: bytes, content: bytes) -> tuple[int, int]:
    """Return width and height from the header of the image data, RFC 6386 and RFC 9649."""
    if name == LOSSLESS and len(content) > 5 and content[0] == LOSSLESS_SIGNATURE:
        (bits,) = struct.unpack_from("<I", content, 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if name == LOSSY and len(content) > 10 and content[3:6] == LOSSY_SIGNATURE:
        width, height = struct.unpack_from("<HH", content, 6)
        if width & 0x3FFF and height & 0x3FFF:
            return width & 0x3FFF, height & 0x3FFF
    raise damaged("WebP", "the header of its image is not readable")


def _24_bits(value: int) -> bytes:
    return value.to_bytes(3, "little")


def _chunk(name: bytes, content: bytes) -> bytes:
    padding = bytes(len(content) % 2)
    return name + struct.pack("<I", len(content)) + content + padding


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of every chunk inside the RIFF container."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise truncated("WebP")
    return _chunks_between(data, HEADER_SIZE, end)


def _chunks_between(data: bytes, position: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    while position + 8 <= end:
        name = data[position : position + 4]
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        start = position + 8
        if start + length > end:
            raise damaged("WebP", "a chunk is longer than the file")
        if not name.isascii() or not name.strip().isalnum():
            raise damaged("WebP", f"a chunk has the name {name!r}")
        yield name, data[start : start + length]
        # Chunks are padded with a zero to an even length. libwebp reads on in the padding.
        position = start + length
        if length % 2:
            if data[position : position + 1] != b"\0":
                raise damaged("WebP", "a chunk is not padded with zero")
            position += 1
    if position < end:
        raise damaged("WebP", "there is no chunk at its end")
