"""TIFF: the structure is read by tifffile, the pixels are decoded here.

OpenCV reads several kinds of TIFF wrong without an error, and fills damaged strips with black. Here
every strip and tile must decompress to exactly the bytes that the image needs, and kinds that are
not decoded to the bit are refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from flawline.cameras.formats import MAX_PIXELS, DecodeError, ImageReader, damaged, several
from flawline.cameras.formats.orientation import orient
from flawline.cameras.formats.segments import decode_segments
from flawline.cameras.formats.tiff_pages import find_images, open_tiff

SAVE_AS = "save it uncompressed, with LZW or with ZIP, and 8 or 16 bits per pixel"
MIN_IS_WHITE = 0
MIN_IS_BLACK = 1
RGB = 2
PALETTE = 3
UNSIGNED = 1
ORIENTATION_TAG = 274


def decode_tiff(data: bytes) -> npt.NDArray[Any]:
    """Decode a TIFF file. Raises DecodeError for a kind that is not read, damage or several images.

    12-bit pixels are stored in uint16 unscaled. Palette images become BGR.
    """
    images = read_tiff(io.BytesIO(data))
    first = next(images)
    count = 1
    for _ in images:
        count += 1
    if count > 1:
        raise several("TIFF", count)
    return first()


def read_tiff(stream: BinaryIO) -> Iterator[ImageReader]:
    """Yield a function for each image of a TIFF file, which decodes it as `decode_tiff` does.

    The function raises DecodeError for an image that is damaged or of a kind that is not read. The
    iterator raises it where damage hides further images, and OSError where the file cannot be read.
    `stream` must stay open meanwhile.
    """
    try:
        for image in find_images(open_tiff(stream)):
            yield partial(_decode_image, image)
    except (DecodeError, OSError):
        raise
    except Exception as error:
        # tifffile raises many kinds of errors for a damaged file, as it expects none.
        raise damaged("TIFF", str(error) or type(error).__name__) from error


def _decode_image(image: tuple[Any, int] | DecodeError) -> npt.NDArray[Any]:
    if isinstance(image, DecodeError):
        raise image
    page, shift = image
    try:
        return _decode_page(page, shift)
    except DecodeError:
        raise
    except Exception as error:
        raise damaged("TIFF", str(error) or type(error).__name__) from error


def _decode_page(page: Any, shift: int) -> npt.NDArray[Any]:
    _require_pixels(page)
    if not 0 < page.imagewidth * page.imagelength <= MAX_PIXELS:
        raise damaged("TIFF", f"its size is {page.imagewidth}x{page.imagelength}")
    image = decode_segments(page, shift)
    if page.photometric == MIN_IS_WHITE:
        image = _largest(page, image) - image
    elif page.photometric == PALETTE:
        image = _apply_palette(page, image)
    if image.shape[2] == 1:
        image = image[..., 0]
    else:
        # RGB to BGR; an alpha channel stays in its place.
        image = np.concatenate([image[..., 2::-1], image[..., 3:]], 2)
    return orient(image, _orientation(page))


def _require_pixels(page: Any) -> None:
    """Raise DecodeError for pixels of a kind that is not decoded."""
    bits = page.bitspersample
    format_ = page.sampleformat
    if format_ != UNSIGNED or bits not in (1, 8, 12, 16):
        kind = page.dtype
        if kind is None or format_ == UNSIGNED:
            kind = f"of {bits} bits"
        raise DecodeError(f"pixels are {kind}; save the image with 8 or 16 bits per pixel")
    samples = page.samplesperpixel
    photometric = int(page.photometric)
    if photometric in (MIN_IS_WHITE, MIN_IS_BLACK):
        is_supported = samples == 1
    elif photometric == RGB:
        is_supported = samples in (3, 4) and bits >= 8
    elif photometric == PALETTE:
        is_supported = samples == 1 and bits == 8
    else:
        is_supported = False
    if not is_supported:
        raise DecodeError(
            f"TIFF with {samples} x {bits} bits of the kind {page.photometric.name} is not read; "
            f"save it as grey or RGB"
        )


def _largest(page: Any, image: npt.NDArray[Any]) -> Any:
    # One bit is already spread to 0 and 255.
    bits = max(page.bitspersample, 8)
    return image.dtype.type((1 << bits) - 1)


def _apply_palette(page: Any, image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    colours = np.asarray(page.colormap)
    if colours.shape != (3, 256):
        raise damaged("TIFF", "its palette is not complete")
    if 0 < colours.max() < 256:
        raise DecodeError(f"TIFF with a palette of 8 bits is not read; {SAVE_AS}")
    palette = (colours.T >> 8).astype(np.uint8)
    coloured: npt.NDArray[np.uint8] = palette[image[..., 0]]
    return coloured


def _orientation(page: Any) -> int:
    tag = page.tags.get(ORIENTATION_TAG)
    if tag is None:
        return 1
    value = int(tag.value)
    return value if 1 <= value <= 8 else 1
