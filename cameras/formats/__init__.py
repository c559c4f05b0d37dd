"""Image file formats, one module each, recognised by their first bytes and never by their names.

A decoder gives exact pixels or raises DecodeError. It never gives part of an image, and never one
image of several. A format whose files may hold several images that are read has a reader as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pkgutil import resolve_name
from typing import Any, BinaryIO

import numpy.typing as npt

Decoder = Callable[[bytes], npt.NDArray[Any]]
# Decodes one image of a file, or raises DecodeError.
ImageReader = Callable[[], npt.NDArray[Any]]
FileReader = Callable[[BinaryIO], Iterator[ImageReader]]

# First bytes -> "module:function", resolved when it is used.
DECODERS = {
    b"\xff\xd8": "flawline.cameras.formats.jpeg:decode_jpeg",
    b"\x89PNG\r\n\x1a\n": "flawline.cameras.formats.png:decode_png",
    b"BM": "flawline.cameras.formats.bmp:decode_bmp",
    b"II*\0": "flawline.cameras.formats.tiff:decode_tiff",
    b"MM\0*": "flawline.cameras.formats.tiff:decode_tiff",
    b"II+\0": "flawline.cameras.formats.tiff:decode_tiff",
    b"MM\0+": "flawline.cameras.formats.tiff:decode_tiff",
    b"RIFF": "flawline.cameras.formats.webp:decode_webp",
    b"GIF8": "flawline.cameras.formats.gif:decode_gif",
    b"P5": "flawline.cameras.formats.pnm:decode_pnm",
    b"P6": "flawline.cameras.formats.pnm:decode_pnm",
}
# The formats of which each image of a file is read. Other files with several images are refused.
FILE_READERS = {
    b"II*\0": "flawline.cameras.formats.tiff:read_tiff",
    b"MM\0*": "flawline.cameras.formats.tiff:read_tiff",
    b"II+\0": "flawline.cameras.formats.tiff:read_tiff",
    b"MM\0+": "flawline.cameras.formats.tiff:read_tiff",
}
LONGEST_START = max(map(len, DECODERS))

COPY_AGAIN = "remove the file or copy it again"
# The largest image that is decoded, as in OpenCV; a damaged header may claim any size.
MAX_PIXELS = 1 << 30


class DecodeError(ValueError):
    """The file gives no exact pixels. The text says why and what to do."""


def find_decoder(data: bytes) -> Decoder | None:
    """Return the decoder for a file that starts with `data`, or None for an unknown format."""
    for start, target in DECODERS.items():
        if not data.startswith(start):
            continue
        # AVI and WAV files are RIFF files, too.
        if start == b"RIFF" and data[8:12] != b"WEBP":
            continue
        decoder: Decoder = resolve_name(target)
        return decoder
    return None


def find_file_reader(data: bytes) -> FileReader | None:
    """Return the reader of the images of a file that starts with `data`, or None for one image."""
    for start, target in FILE_READERS.items():
        if data.startswith(start):
            reader: FileReader = resolve_name(target)
            return reader
    return None


def damaged(kind: str, what: str) -> DecodeError:
    """Return the error for a file of a format, such as "PNG", that is damaged."""
    return DecodeError(f"the {kind} is damaged ({what}); {COPY_AGAIN}")


def truncated(kind: str) -> DecodeError:
    """Return the error for a file of a format that ends before its image does."""
    return DecodeError(f"the {kind} is truncated; {COPY_AGAIN}")


def several(kind: str, count: int) -> DecodeError:
    """Return the error for a file that holds more than one image."""
    return DecodeError(
        f"the {kind} holds {count} images, and each may show a part; save each as a file of its own"
    )
