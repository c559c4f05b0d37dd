"""Image files: which files are images, and how they are decoded without silent damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.cameras import CameraError
from flawline.cameras.bit_depth import UndeclaredBitDepthError
from flawline.cameras.formats import COPY_AGAIN, LONGEST_START, DecodeError, find_decoder
from flawline.cameras.listing import LeftOut, is_unread, list_files
from flawline.cameras.pixels import to_8_bit
from flawline.os_errors import reason_of, remedy_of

IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".bmp",
    ".dib",
    ".tif",
    ".tiff",
    ".webp",
    ".pgm",
    ".ppm",
    ".pnm",
)
FORMATS = "PNG, JPEG, BMP, TIFF, WebP, PGM, PPM"


def is_image(path: Path) -> bool:
    """Tell by its name whether a file is an image; hidden files are not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_images(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """List every image in a folder and its subfolders, sorted by path; see `list_files`.

    Links are followed, a real file is listed once, and hidden and system folders are left out. A
    broken link is listed, so that it is reported when it is read.
    """
    return list_files(folder, is_image, left_out)


def list_images_and_unread(folder: Path, left_out: LeftOut) -> list[Path]:
    """List the images of a folder and its subfolders, also those of formats that are not read.

    The latter are counted in `left_out.unread` as well.
    """
    paths = list_files(folder, _is_image_of_any_format, left_out)
    for path in paths:
        if is_unread(path):
            left_out.unread[path.suffix.lower()] += 1
    return paths


def _is_image_of_any_format(path: Path) -> bool:
    return is_image(path) or is_unread(path)


def has_image_content(path: Path) -> bool:
    """Tell by its first bytes whether a file is an image of a format that is read."""
    try:
        with path.open("rb") as file:
            start = file.read(LONGEST_START + 8)
    except OSError:
        return False
    return find_decoder(start) is not None


def read_image(path: Path, bit_depth: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode an image file to 8 bits: uint8 [h, w, 3] BGR or [h, w] mono.

    `bit_depth` is the number of significant bits of 16-bit files, for example 12 for most
    machine-vision cameras. Guessing it from the values would make the same part brighter or darker
    from image to image, so a 16-bit file without it is an error. Raises CameraError.
    """
    image = decode_image(path)
    if image.dtype == np.uint16 and bit_depth is None:
        raise UndeclaredBitDepthError(
            f"{path}: has 16 bits per pixel (largest value {image.max()})"
        )
    try:
        return to_8_bit(image, bit_depth or 8)
    except ValueError as error:
        raise CameraError(f"{path}: {error}") from error


def decode_image(path: Path) -> npt.NDArray[Any]:
    """Decode an image file as it is: uint8 or uint16, [h, w, 3] BGR or [h, w] mono.

    The EXIF orientation is applied. An opaque alpha channel is dropped, any other is an error.
    Raises CameraError for a file that is absent, damaged, truncated, of another pixel type or
    format, or that holds several images.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CameraError(
            f"{path}: cannot be read ({reason_of(error)}); {remedy_of(error)}"
        ) from error
    if not data:
        raise CameraError(f"{path}: the file is empty; {COPY_AGAIN}")
    decoder = find_decoder(data)
    if decoder is None:
        raise CameraError(
            f"{path}: is not an image of a format that is read ({FORMATS}); "
            f"remove the file or save it as PNG"
        )
    try:
        image = decoder(data)
    except DecodeError as error:
        raise CameraError(f"{path}: {error}") from error
    if image.dtype not in (np.uint8, np.uint16):
        raise CameraError(
            f"{path}: pixels are {image.dtype}; save the image with 8 or 16 bits per pixel"
        )
    return _without_alpha(path, image)


def _without_alpha(path: Path, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if image.ndim == 3 and image.shape[2] == 4:
        opaque = np.iinfo(image.dtype).max
        if image[..., 3].min() != opaque:
            raise CameraError(f"{path}: has transparent pixels; save it without an alpha channel")
        image = image[..., :3]
    return np.ascontiguousarray(image)
