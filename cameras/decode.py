"""Image files: which files are images, and how they are decoded without silent damage."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from flawline.cameras import CameraError
from flawline.cameras.bit_depth import UndeclaredBitDepthError
from flawline.cameras.formats import (
    COPY_AGAIN,
    LONGEST_START,
    DecodeError,
    FileReader,
    ImageReader,
    find_decoder,
    find_file_reader,
)
from flawline.cameras.listing import UNREAD_SUFFIXES, LeftOut, is_unread, list_files
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
LISTED_SUFFIXES = frozenset((*IMAGE_SUFFIXES, *UNREAD_SUFFIXES))
FORMATS = "PNG, JPEG, BMP, TIFF, WebP, PGM, PPM"
# Larger files with several images are read image by image, and not loaded.
LARGEST_LOADED = 256 << 20


@dataclass(frozen=True)
class FileImage:
    """One image of a file: its name, and its pixels as `decode_image` gives them, or a fault.

    `source` is the path of the file, followed by the number of the page if it has several.
    """

    path: Path
    source: str
    image: npt.NDArray[Any] | None
    fault: str | None = None


def is_image(path: Path) -> bool:
    """Tell by its name whether a file is an image; hidden files are not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def is_listed(name: str) -> bool:
    """Tell by its name whether a camera's folder lists a file: an image, also of an unread format.

    Temporary files, such as .part.png and part.png.tmp, are none.
    """
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in LISTED_SUFFIXES


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
    paths = list_files(folder, lambda path: is_listed(path.name), left_out)
    for path in paths:
        if is_unread(path):
            left_out.unread[path.suffix.lower()] += 1
    return paths


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
        raise _unreadable(path, error) from error
    return _decode(path, data)


def decode_images(path: Path) -> Iterator[FileImage]:
    """Decode every image of a file, one after the other, each as `decode_image` does.

    The images of a file that holds several are named "PATH page 1", "PATH page 2" and so on. An
    image that cannot be decoded has a fault. Where damage hides how many images follow, one fault
    stands for them. Formats of which only one image is read give a fault for the whole file.
    """
    try:
        with path.open("rb", buffering=0) as file:
            start = file.read(LONGEST_START)
            file.seek(0)
            read_file = find_file_reader(start)
            if read_file is None:
                yield _decoded(path, file.readall())
                return
            if os.fstat(file.fileno()).st_size > LARGEST_LOADED:
                yield from _pages(path, read_file, io.BufferedReader(file))
            else:
                yield from _pages(path, read_file, io.BytesIO(file.readall()))
    except OSError as error:
        yield FileImage(path, str(path), None, str(_unreadable(path, error)))


def count_images(path: Path) -> int:
    """Return how many images `decode_images` gives for a file, without decoding them.

    A file or a part of one that cannot be read counts as one image, as the fault there does.
    """
    try:
        with path.open("rb") as file:
            read_file = find_file_reader(file.read(LONGEST_START))
            if read_file is None:
                return 1
            file.seek(0)
            return sum(1 for _ in _readers_and_last_error(read_file, file))
    except OSError:
        return 1


def _decoded(path: Path, data: bytes) -> FileImage:
    try:
        return FileImage(path, str(path), _decode(path, data))
    except CameraError as error:
        return FileImage(path, str(path), None, str(error))


def _pages(path: Path, read_file: FileReader, stream: BinaryIO) -> Iterator[FileImage]:
    images = _readers_and_last_error(read_file, stream)
    current = next(images)
    number = 1
    # A file is known to hold several images as soon as there is a second one.
    for following in images:
        yield _page(path, f"{path} page {number}", current)
        current = following
        number += 1
    yield _page(path, str(path) if number == 1 else f"{path} page {number}", current)


def _readers_and_last_error(read_file: FileReader, stream: BinaryIO) -> Iterator[ImageReader]:
    """Yield the readers of the images; the error that ends them becomes a last one."""
    try:
        yield from read_file(stream)
    except DecodeError as error:
        failure = error
    except OSError as error:
        failure = DecodeError(f"cannot be read ({reason_of(error)}); {remedy_of(error)}")
    else:
        return

    def fail() -> npt.NDArray[Any]:
        raise failure

    yield fail


def _page(path: Path, source: str, read: ImageReader) -> FileImage:
    try:
        return FileImage(path, source, _checked(source, read()))
    except DecodeError as error:
        return FileImage(path, source, None, f"{source}: {error}")
    except CameraError as error:
        return FileImage(path, source, None, str(error))


def _unreadable(path: Path, error: OSError) -> CameraError:
    return CameraError(f"{path}: cannot be read ({reason_of(error)}); {remedy_of(error)}")


def _decode(path: Path, data: bytes) -> npt.NDArray[Any]:
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
    return _checked(str(path), image)


def _checked(source: str, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the image without an opaque alpha channel. Raises CameraError for what is no image."""
    if image.dtype not in (np.uint8, np.uint16):
        raise CameraError(
            f"{source}: pixels are {image.dtype}; save the image with 8 or 16 bits per pixel"
        )
    if image.ndim == 3 and image.shape[2] == 4:
        opaque = np.iinfo(image.dtype).max
        if image[..., 3].min() != opaque:
            raise CameraError(f"{source}: has transparent pixels; save it without an alpha channel")
        image = image[..., :3]
    return np.ascontiguousarray(image)
