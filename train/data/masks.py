"""Ground-truth masks of any bit depth, colour and palette, read strictly."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawline.cameras import CameraError
from flawline.cameras.decode import decode_image
from flawline.cameras.formats.segments import CHUNKY, DECOMPRESSORS
from flawline.runtime.image import Geometry, prepare_mask
from flawline.train.data.dataset import DataError, Sample

Mask = npt.NDArray[np.bool_]

TIFF_STARTS = (b"II", b"MM")
JPEG_START = b"\xff\xd8"
# Parts of the messages with which `decode_image` refuses what a mask may be: transparency, and
# pixels of other types.
ONLY_OF_IMAGES = ("has transparent pixels", "pixels are")


def read_mask(sample: Sample, geometry: Geometry) -> Mask:
    """Read the ground truth of a test image in the model's input frame.

    Returns bool [H, W], True where the part is defective; all False for a sample without a mask.
    A mask of another size than its image is stretched to it. Raises DataError for a file that
    cannot be read, is damaged, or is turned by 90 degrees against its image.
    """
    if sample.mask is None:
        return np.zeros((geometry.height, geometry.width), bool)
    mask = decode_mask(sample.mask)
    # A stretched mask ends up in the same place, whatever the size of its image is.
    if geometry.kind != "stretch" and sample.path.is_file():
        mask = fit_mask(mask, _size_of(sample.path), sample.mask)
    return prepare_mask(mask, geometry)


def fit_mask(mask: Mask, size: tuple[int, int], path: Path) -> Mask:
    """Stretch a mask [h, w] to the size (height, width) of its image.

    Raises DataError for a mask that is turned by 90 degrees; `path` is its file.
    """
    if mask.shape == size:
        return mask
    height, width = size
    if mask.shape == (width, height):
        raise DataError(
            f"mask {path}: is {height}x{width} pixels and its image {width}x{height}; turn the "
            f"mask by 90 degrees"
        )
    stretched = cv2.resize(
        mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return stretched > 0


def _size_of(image: Path) -> tuple[int, int]:
    height, width = decode_image(image).shape[:2]
    return height, width


def decode_mask(path: Path) -> Mask:
    """Decode a mask file: bool [h, w], True where a pixel is not 0 in any colour.

    Transparent pixels are not defective. A mask that is black everywhere marks the defect by its
    opacity instead. Compression with losses blurs edges, so that a pixel of a JPEG or of such a
    WebP is defective from half of the largest value. Raises DataError.
    """
    pixels = _decode(path)
    if np.issubdtype(pixels.dtype, np.floating) and not np.isfinite(pixels).all():
        raise DataError(
            f"mask {path}: has values that are not finite; save it as a PNG of black and white"
        )
    colours = np.atleast_3d(pixels)
    values = colours[..., :3].max(2)
    limit = 0.0
    if _is_lossy(path):
        limit = float(values.max()) / 2
    marked = values > limit
    if colours.shape[2] == 4:
        visible = colours[..., 3] > 0
        if marked.any():
            return np.asarray(marked & visible)
        # An opaque black image is an empty mask.
        return np.asarray(visible & ~visible.all())
    return np.asarray(marked)


def _decode(path: Path) -> npt.NDArray[Any]:
    """Decode a mask with the checks for images, and also with transparency and other depths."""
    try:
        return decode_image(path)
    except CameraError as error:
        pixels = None
        if any(reason in str(error) for reason in ONLY_OF_IMAGES):
            pixels = _decode_unlike_image(path)
        if pixels is None:
            raise DataError(f"mask {error}") from error
        return pixels


def _decode_unlike_image(path: Path) -> npt.NDArray[Any] | None:
    """Decode a mask with transparency, or with pixels of other types; None where it fails."""
    data = path.read_bytes()
    if data.startswith(TIFF_STARTS) and not _is_whole_tiff(data):
        raise DataError(f"mask {path}: the TIFF is damaged; remove the file or copy it again")
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None


def _is_whole_tiff(data: bytes) -> bool:
    """Whether every strip and tile decompresses to its size: OpenCV fills lost ones with zeros."""
    # Imported here because few masks need it.
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            for page in file.pages:
                _decompress_all(page, data)
    except Exception:
        # tifffile and the decompressors raise many kinds of errors for a damaged file.
        return False
    return True


def _decompress_all(page: Any, data: bytes) -> None:
    """Decompress every strip or tile of a page. Raises an exception of any kind for damage.

    Compressions that are not known here are left to OpenCV.
    """
    decompress = DECOMPRESSORS.get(int(page.compression))
    if decompress is None:
        return
    rows = min(page.rowsperstrip, page.imagelength)
    columns = page.imagewidth
    if page.is_tiled:
        rows = page.tilelength
        columns = page.tilewidth
    samples = page.samplesperpixel if page.planarconfig == CHUNKY else 1
    row_size = (columns * samples * page.bitspersample + 7) // 8
    down = -(-page.imagelength // rows)
    for number, offset in enumerate(page.dataoffsets):
        height = rows
        if not page.is_tiled:
            height = min(rows, page.imagelength - number % down * rows)
        content = data[offset : offset + page.databytecounts[number]]
        raw = decompress(content, height * row_size)
        if len(raw) != height * row_size:
            raise ValueError(f"strip {number} has another size")


def _is_lossy(path: Path) -> bool:
    """Whether the compression of a file changes pixels: JPEG, or WebP that is not lossless."""
    data = path.read_bytes()
    if data.startswith(JPEG_START):
        return True
    return data[8:12] == b"WEBP" and b"VP8 " in data and b"VP8L" not in data
