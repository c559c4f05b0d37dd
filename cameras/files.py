"""Images and videos on disk. Nothing is dropped, and what cannot be read is told, not skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt

from flawline.cameras import CameraError, Frame

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_images(folder: Path) -> list[Path]:
    """Every image below the folder, sorted by path; links are followed, and a broken one is listed, not skipped."""
    found = (
        Path(root) / name for root, _, names in os.walk(folder, followlinks=True) for name in names
    )
    return sorted(path for path in found if is_image(path))


def read_image(path: Path, bits: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode an image file to uint8 [h, w, 3] BGR or [h, w] mono. Raises CameraError.

    EXIF rotation is applied. `bits` says how many bits of a 16-bit file carry the picture (12 for most machine-vision
    cameras): guessing it from the values would make the same part brighter or darker from image to image. Opaque
    alpha is dropped, any other refused.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CameraError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    if why := _damage(data):
        raise CameraError(f"{path}: {why}; remove the file or copy it again")
    # UNCHANGED ignores EXIF, ANYCOLOR applies it; but ANYCOLOR would squeeze 12 bits in 16 to black.
    flag = cv2.IMREAD_ANYCOLOR if data[:2] == b"\xff\xd8" else cv2.IMREAD_UNCHANGED
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:  # such as a header that claims more pixels than OpenCV decodes
        image = None
    if image is None:
        raise CameraError(
            f"{path}: is not an image that OpenCV can decode; remove the file or save it as PNG"
        )
    return _to_8_bit_bgr(path, image, bits)


def _to_8_bit_bgr(path: Path, image: npt.NDArray[Any], bits: int | None) -> npt.NDArray[np.uint8]:
    if image.dtype not in (np.uint8, np.uint16):
        raise CameraError(
            f"{path}: pixels are {image.dtype}; save the image with 8 or 16 bits per pixel"
        )
    if image.ndim == 3 and image.shape[2] == 4:
        if image[..., 3].min() != np.iinfo(image.dtype).max:
            raise CameraError(f"{path}: has transparent pixels; save it without an alpha channel")
        image = image[..., :3]
    if image.dtype == np.uint16:
        if bits is None:
            raise CameraError(
                f"{path}: has 16 bits per pixel (largest value {image.max()}); "
                f"say how many carry the picture, such as --bits 12, or ?bits=12 in a camera URI"
            )
        if image.max() >> bits:
            raise CameraError(
                f"{path}: value {image.max()} does not fit in {bits} bits; correct the number of bits"
            )
        image = (image >> (bits - 8)).astype(np.uint8)
    return np.ascontiguousarray(image)


def _damage(data: bytes) -> str | None:
    """OpenCV decodes half a JPEG to a full picture with a grey bottom, so the end is looked for here."""
    if not data:
        return "the file is empty"
    if data[:2] == b"\xff\xd8" and not _jpeg_is_complete(data):
        return "the JPEG is truncated"
    if data[:4] == b"\x89PNG" and data.rfind(b"IEND") < 0:
        return "the PNG is truncated"
    if data[:2] == b"BM" and len(data) < int.from_bytes(data[2:6], "little"):
        return "the BMP is truncated"
    return None


def _jpeg_is_complete(data: bytes) -> bool:
    """Whether an end-of-image marker follows the picture's own scan, not that of an embedded thumbnail."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return data.find(b"\xff\xd9", at) >= 0
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big") if marker != 0xFF else 1
    return False


class Folder:
    """The images of a folder and below, in order of their paths; or a single image."""

    live: ClassVar[bool] = False
    untested: ClassVar[str | None] = None

    def __init__(self, path: str, bits: str | None = None) -> None:
        self.dropped = 0
        self._closed = False
        self._bits = _whole_number("bits", bits, 8, 16)
        root = Path(path)
        self._paths = [root] if root.is_file() else list_images(root)
        if not self._paths:
            known = " ".join(IMAGE_SUFFIXES)
            raise CameraError(
                f"camera {path}: there is no image in this folder; it must hold files named {known}"
            )

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self._paths):
            if self._closed:
                return
            try:
                yield Frame(str(path), index, read_image(path, self._bits))
            except CameraError as error:
                yield Frame(str(path), index, None, fault=str(error))

    def close(self) -> None:
        self._closed = True


class Video:
    """Every frame of a video file that OpenCV can decode."""

    live: ClassVar[bool] = False
    untested: ClassVar[str | None] = None

    def __init__(self, path: str) -> None:
        self.dropped = 0
        self._path = path
        if not Path(path).is_file():
            raise CameraError(f"camera {path}: there is no such file or folder")
        self._capture = cv2.VideoCapture(path)
        if not self._capture.isOpened():
            raise CameraError(
                f"camera {path}: OpenCV cannot open this video; an MP4 cut off in recording has no index"
            )

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while True:
            ok, image = self._capture.read()
            if not ok:
                break
            yield Frame(self._path, index, image)
            index += 1
        if index == 0:
            raise CameraError(
                f"camera {self._path}: the video holds no frame that can be decoded; record it again"
            )
        # OpenCV reports damage as the end of the file; the container knows how many frames there should be.
        expected = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if index < expected and self._capture.isOpened():
            fault = f"{self._path}: damaged after frame {index - 1}, {expected - index} frames cannot be decoded"
            yield Frame(self._path, index, None, fault=f"{fault}; record it again")

    def close(self) -> None:
        self._capture.release()


def _whole_number(name: str, text: str | None, low: int, high: int) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ValueError(f"{name}={text} is not a whole number from {low} to {high}")
    return int(text)
