"""Image files: which files are images, and how they are decoded without silent damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawline.cameras import CameraError
from flawline.cameras.bit_depth import UndeclaredBitDepthError
from flawline.cameras.listing import LeftOut, list_files
from flawline.cameras.pixels import to_8_bit
from flawline.os_errors import reason_of, remedy_of

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

JPEG_START = b"\xff\xd8"
JPEG_END = b"\xff\xd9"
JPEG_SCAN = 0xDA
PNG_START = b"\x89PNG"


def is_image(path: Path) -> bool:
    """Tell by its name whether a file is an image; hidden files are not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_images(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """List every image in a folder and its subfolders, sorted by path; see `list_files`.

    Links are followed, a real file is listed once, and hidden and system folders are left out. A
    broken link is listed, so that it is reported when it is read.
    """
    return list_files(folder, is_image, left_out)


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

    EXIF rotation is applied. An opaque alpha channel is dropped, any other is an error. Raises
    CameraError for a file that is absent, damaged, truncated or of another pixel type.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CameraError(
            f"{path}: cannot be read ({reason_of(error)}); {remedy_of(error)}"
        ) from error
    damage = _damage(data)
    if damage is not None:
        raise CameraError(f"{path}: {damage}; remove the file or copy it again")
    image = _decode(data)
    if image is None:
        raise CameraError(
            f"{path}: is not an image that OpenCV can decode; remove the file or save it as PNG"
        )
    if image.dtype not in (np.uint8, np.uint16):
        raise CameraError(
            f"{path}: pixels are {image.dtype}; save the image with 8 or 16 bits per pixel"
        )
    return _without_alpha(path, image)


def _decode(data: bytes) -> npt.NDArray[Any] | None:
    # ANYCOLOR applies EXIF, but it scales 16-bit values to 8 bits, so that 12-bit images become
    # nearly black. UNCHANGED ignores EXIF.
    flag = cv2.IMREAD_UNCHANGED
    if data.startswith(JPEG_START):
        flag = cv2.IMREAD_ANYCOLOR
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        # For example, a header that claims more pixels than OpenCV decodes.
        return None


def _without_alpha(path: Path, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if image.ndim == 3 and image.shape[2] == 4:
        opaque = np.iinfo(image.dtype).max
        if image[..., 3].min() != opaque:
            raise CameraError(f"{path}: has transparent pixels; save it without an alpha channel")
        image = image[..., :3]
    return np.ascontiguousarray(image)


def _damage(data: bytes) -> str | None:
    """Say how a file is incomplete, or return None.

    OpenCV decodes half a JPEG to a full image with a grey bottom, so this checks the end of the
    file.
    """
    if not data:
        return "the file is empty"
    if data.startswith(JPEG_START) and not _jpeg_is_complete(data):
        return "the JPEG is truncated"
    if data.startswith(PNG_START) and data.rfind(b"IEND") < 0:
        return "the PNG is truncated"
    if data.startswith(b"BM") and len(data) < int.from_bytes(data[2:6], "little"):
        return "the BMP is truncated"
    return None


def _jpeg_is_complete(data: bytes) -> bool:
    """Check that an end-of-image marker follows the scan of the image itself.

    Cameras embed thumbnails, which are whole JPEG files with a marker of their own.
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == JPEG_SCAN:
            return data.find(JPEG_END, position) >= 0
        if marker == 0xFF:
            # A fill byte before the marker.
            position += 1
            continue
        segment = int.from_bytes(data[position + 2 : position + 4], "big")
        position += 2 + segment
    return False
