"""Operations on rectangles of an image: sizes drawn as in CutPaste, jitter, paste, swap.

Li et al., "CutPaste: self-supervised learning for anomaly detection and localization" (CVPR 2021),
with the ranges of their paper. A position is (row, column) of the upper-left corner, and a size is
(height, width), both in pixels. No function changes the image that it is given.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from flawline.runtime.image import Image
from flawline.train.anomalies import Mask

Position = tuple[int, int]
Size = tuple[int, int]

# Of a patch: fraction of the image's area, and height over width, on a logarithmic scale.
AREA = (0.02, 0.15)
ASPECT = (0.3, 1 / 0.3)
# Of a scar: width and height in pixels of an image whose side is SCAR_SIDE, and degrees.
SCAR_WIDTH = (2.0, 16.0)
SCAR_HEIGHT = (10.0, 25.0)
SCAR_SIDE = 256
SCAR_ANGLE = (-45.0, 45.0)
# Largest relative change of brightness, contrast and saturation, and of the hue in turns.
JITTER = 0.1
# Of blue, green and red in the grey value.
GREY = np.array([0.114, 0.587, 0.299], np.float32)


def jitter(image: Image, rng: np.random.Generator) -> Image:
    """Change brightness, contrast, saturation and hue of uint8 [H, W, 3] BGR by up to JITTER."""
    brightness, contrast, saturation = 1 + rng.uniform(-JITTER, JITTER, 3)
    turn = rng.uniform(-JITTER, JITTER)
    pixels = image.astype(np.float32) / 255 * np.float32(brightness)
    mean = float((pixels @ GREY).mean())
    pixels = mean + (pixels - mean) * np.float32(contrast)
    grey = (pixels @ GREY)[..., None]
    pixels = np.clip(grey + (pixels - grey) * np.float32(saturation), 0, 1)
    hsv = cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * np.float32(turn)) % 360
    turned = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return np.asarray(np.clip(np.rint(255 * turned), 0, 255), np.uint8)


def draw_patch_size(
    shape: Size, rng: np.random.Generator, areas: tuple[float, float] = AREA
) -> Size:
    """Draw the size of a patch of an image of this height and width.

    areas: bounds of its fraction of the image's area.
    """
    height, width = shape
    area = rng.uniform(*areas) * height * width
    aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
    tall = round(math.sqrt(area * aspect))
    wide = round(math.sqrt(area / aspect))
    return min(max(tall, 1), height), min(max(wide, 1), width)


def draw_scar(shape: Size, rng: np.random.Generator) -> tuple[Size, float]:
    """Draw the size of a scar of an image of this height and width, and its angle in degrees."""
    scale = min(shape) / SCAR_SIDE
    wide = max(1, round(rng.uniform(*SCAR_WIDTH) * scale))
    tall = max(2, round(rng.uniform(*SCAR_HEIGHT) * scale))
    return (tall, wide), float(rng.uniform(*SCAR_ANGLE))


def draw_position(shape: Size, size: Size, rng: np.random.Generator) -> Position:
    """Draw where a rectangle of this size lies inside an image of this height and width."""
    row = int(rng.integers(0, shape[0] - size[0] + 1))
    column = int(rng.integers(0, shape[1] - size[1] + 1))
    return row, column


def moved_inside(position: Position, size: Size, shape: Size) -> Position:
    """Return the position nearest to the given one at which the rectangle is inside the image."""
    row = min(max(position[0], 0), shape[0] - size[0])
    column = min(max(position[1], 0), shape[1] - size[1])
    return row, column


def content(image: Image, position: Position, size: Size) -> Image:
    """Return a copy of a rectangle of an image."""
    rows, columns = _box(position, size)
    copied: Image = image[rows, columns].copy()
    return copied


def _box(position: Position, size: Size) -> tuple[slice, slice]:
    row, column = position
    return slice(row, row + size[0]), slice(column, column + size[1])


def overlap(first: Position, second: Position, size: Size) -> float:
    """Return which fraction of two rectangles of equal size they have in common."""
    common = 1.0
    for a, b, side in zip(first, second, size, strict=True):
        common *= max(0, side - abs(a - b)) / side
    return common


def paste(image: Image, patch: Image, position: Position) -> Image:
    """Return the image with a patch, uint8 [h, w, 3], at a position."""
    pasted: Image = image.copy()
    pasted[_box(position, (patch.shape[0], patch.shape[1]))] = patch
    return pasted


def rotated(patch: Image, angle: float) -> tuple[Image, Mask]:
    """Rotate a patch, uint8 [h, w, 3], by an angle in degrees.

    Returns the smallest image that contains it, and which of its pixels belong to the patch.
    """
    height, width = patch.shape[:2]
    sine = abs(math.sin(math.radians(angle)))
    cosine = abs(math.cos(math.radians(angle)))
    wide = math.ceil(width * cosine + height * sine)
    tall = math.ceil(width * sine + height * cosine)
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    matrix[:, 2] += ((wide - width) / 2, (tall - height) / 2)
    turned = cv2.warpAffine(
        patch, matrix, (wide, tall), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    inside = np.full((height, width), 255, np.uint8)
    mask = cv2.warpAffine(inside, matrix, (wide, tall), flags=cv2.INTER_LINEAR) > 127
    if not mask.any():
        # A line of one pixel can fall between the pixels of the new grid.
        mask[tall // 2, wide // 2] = True
    return np.asarray(turned, np.uint8), np.asarray(mask, bool)


def paste_rotated(image: Image, patch: Image, angle: float, position: Position) -> Image:
    """Return the image with a rotated patch, whose upper-left corner is moved inside if need be."""
    turned, mask = rotated(patch, angle)
    height = min(turned.shape[0], image.shape[0])
    width = min(turned.shape[1], image.shape[1])
    turned = turned[:height, :width]
    place = moved_inside(position, (height, width), (image.shape[0], image.shape[1]))
    pasted: Image = image.copy()
    pasted[_box(place, (height, width))][mask[:height, :width]] = turned[mask[:height, :width]]
    return pasted


def swap(image: Image, first: Position, second: Position, size: Size) -> Image:
    """Return the image with the contents of two rectangles of equal size exchanged.

    Every pixel of the image occurs as often as before. Where the rectangles overlap, the content of
    the first is moved to the second, and the pixels that it displaces fill what becomes free.
    """
    swapped: Image = image.copy()
    swapped[_box(second, size)] = image[_box(first, size)]
    in_first = _inside(image, first, size)
    rows, columns = np.nonzero(in_first & ~_inside(image, second, size))
    down = second[0] - first[0]
    right = second[1] - first[1]
    source_rows = rows + down
    source_columns = columns + right
    # A pixel that is moved within the overlap displaces the next one, and so on.
    while True:
        again = in_first[source_rows, source_columns]
        if not again.any():
            break
        source_rows = source_rows + down * again
        source_columns = source_columns + right * again
    swapped[rows, columns] = image[source_rows, source_columns]
    return swapped


def _inside(image: Image, position: Position, size: Size) -> Mask:
    inside = np.zeros(image.shape[:2], bool)
    inside[_box(position, size)] = True
    return inside
