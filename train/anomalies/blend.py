"""Synthetic anomalies by Poisson blending: patches of one good image, blended into another.

After Schlüter et al., "Natural synthetic anomalies for self-supervised anomaly detection and
localization" (NSA, ECCV 2022), as Chiu and Lai use it for their self-supervised normalising flow
(CVPR workshops 2023): the gradients of the source for all products, and the source is the image of
the draw before. Their occasional sharpening is left out: the features of the good images are
computed once, so that only the blended images would be sharpened and be recognised by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from flawline.runtime.image import Image
from flawline.train.anomalies import Mask
from flawline.train.anomalies.series import ShuffledImages

Box = tuple[slice, slice]  # rows, columns
Shape = tuple[int, int]  # height, width

# Places that are tried, once for the cut and once for the paste.
ATTEMPTS = 200
# OpenCV's solver fails on thin patches: least pixels of a patch's mask, and least pixels of its
# shorter side, which leaves one pixel to solve for between two given ones.
MIN_PIXELS = 50
MIN_SIDE = 3
# Distribution of a half-width, as a fraction of the image's side: offset + Gamma(shape, scale).
GAMMA_SHAPE = 2.0
GAMMA_SCALE = 0.05
GAMMA_OFFSET = 0.03
# Standard deviation of the factor by which a patch is resized.
RESIZE_STD = 0.5
# Side of the median filter, in pixels, that removes grain from the mask of the object.
MEDIAN_SIDE = 7


@dataclass(frozen=True)
class BlendSettings:
    """How anomalies are made; the defaults are those of an object without a plain background.

    heights, widths: smallest and largest half-height and half-width of a patch, as fractions of the
        image's sides. A patch is cut within them. As in the authors' code, the whole sides of the
        resized patch are held to the same numbers.
    patches: largest number of patches. The first is always tried, each further one with probability
        1/2.
    resize: bounds of the factor by which a patch is resized.
    background, threshold: grey level of a plain background, and how far the object's differs at
        least. None: there is no plain background.
    min_object: smallest fraction of a patch that is object, with a plain background.
    min_overlap: smallest fraction of the patch's object that comes to lie on the object of the
        other image, with a plain background.
    """

    heights: tuple[float, float] = (0.03, 0.40)
    widths: tuple[float, float] = (0.03, 0.40)
    patches: int = 3
    resize: tuple[float, float] = (0.7, 1.3)
    background: float | None = None
    threshold: float = 0.0
    min_object: float = 0.0
    min_overlap: float = 0.0


class Blended(ShuffledImages):
    """Good images and their blended partners: a `SyntheticAnomalies`.

    images: uint8 [H, W, 3] each, all of one size, never modified. Keep them in memory: each is read
    about twice per pass. A draw may be computed in any number of threads.
    """

    def __init__(
        self, images: Sequence[Image], settings: BlendSettings, seed: int, description: str = ""
    ) -> None:
        super().__init__(images, seed)
        self.settings = settings
        self.description = description
        # An image is read for its own draw and, as the source, for the next one.
        self._read = lru_cache(32)(images.__getitem__)

    def index(self, draw: int) -> int:
        """Return the index of the normal image of a draw; that of draw -1 is the first source."""
        if draw < 0:
            return self._order(0)[-1]
        return super().index(draw)

    def sources(self, draw: int) -> list[int]:
        """Return the indices of the normal image and of the image that its patches come from."""
        return [self.index(draw), self.index(draw - 1)]

    def anomalies(self, draws: Sequence[int]) -> list[Image]:
        """Return the blended images of draws, without those in which no patch has found a place."""
        images = []
        for draw in draws:
            _, blended, mask = self.sample(draw)
            if mask.any():
                images.append(blended)
        return images

    def sample(self, draw: int) -> tuple[Image, Image, Mask]:
        """Return the normal image, the blended one and the mask of the patches, all new arrays.

        The images are uint8 [H, W, 3], the mask is bool [H, W]; see `blend`.
        """
        rng = self.rng(draw)
        # These two values decided about sharpening, which is gone; without them every sample
        # changes.
        rng.random(2)
        image = np.asarray(self._read(self.index(draw)))
        source = np.asarray(self._read(self.index(draw - 1)))
        blended, mask = blend(image, source, self.settings, rng)
        return image.copy(), blended, mask


def blend(
    image: Image, source: Image, settings: BlendSettings, rng: np.random.Generator
) -> tuple[Image, Mask]:
    """Blend patches of `source` into a copy of `image`.

    image, source: uint8 [H, W, 3] BGR of equal size, not modified. Returns the new image and a
    mask, bool [H, W]: the rectangles that were solved for, outside of which no pixel changes. Where
    no place suits a patch in 200 attempts, the image is unchanged and the mask is empty; where both
    images look the same, a patch may leave no trace. Raises ValueError for images of another kind
    or size.
    """
    _check_pair(image, source)
    height, width = image.shape[:2]
    shape = (height, width)
    source_object = object_mask(source, settings)
    image_object = object_mask(image, settings)
    blended = image.copy()
    mask = np.zeros(shape, bool)
    for number in range(settings.patches):
        if number > 0 and rng.random() < 0.5:
            continue
        cut = _choose_cut(shape, source_object, settings, rng)
        if cut is None:
            continue
        size = _resized(cut, shape, settings, rng)
        patch = np.asarray(cv2.resize(source[cut], size[::-1]), np.uint8)
        patch_object = None
        if source_object is not None:
            resized = cv2.resize(source_object[cut].astype(np.uint8), size[::-1])
            patch_object = np.asarray(resized > 0)
        place = _choose_place(size, patch_object, image_object, shape, settings, rng)
        if place is None or not _solvable(size):
            continue
        mask[_paste(blended, patch, place)] = True
    return blended, mask


def _check_pair(image: Image, source: Image) -> None:
    kinds = []
    for one in (image, source):
        kinds.append(f"{one.dtype} {list(one.shape)}")
    height, width = image.shape[:2]
    expected = f"uint8 {[height, width, 3]}"
    if kinds != [expected, expected]:
        raise ValueError(
            f"expected two images uint8 [H, W, 3] of equal size, got {' and '.join(kinds)}"
        )


def object_mask(image: Image, settings: BlendSettings) -> Mask | None:
    """Return where an image [H, W, 3] is not plain background: bool [H, W].

    None without a plain background in the settings.
    """
    if settings.background is None:
        return None
    # Sums of three channels instead of means: they are exact in float32.
    grey_sum = image.astype(np.float32) @ np.ones(3, np.float32)
    difference = np.abs(grey_sum - 3 * settings.background)
    differs = (difference > 3 * settings.threshold).astype(np.uint8)
    # A median filter of zeros and ones; counting the ones is ten times as fast as sorting.
    count = cv2.boxFilter(
        differs,
        cv2.CV_8U,
        (MEDIAN_SIDE, MEDIAN_SIDE),
        normalize=False,
        borderType=cv2.BORDER_REPLICATE,
    )
    return np.asarray(count > MEDIAN_SIDE**2 // 2, bool)


def _pixel_bounds(settings: BlendSettings, shape: Shape) -> list[tuple[int, int]]:
    """Return the bounds of heights and of widths in pixels."""
    bounds = []
    for (low, high), side in zip((settings.heights, settings.widths), shape, strict=True):
        bounds.append((max(1, round(low * side)), max(1, round(high * side))))
    return bounds


def _choose_cut(
    shape: Shape,
    source_object: Mask | None,
    settings: BlendSettings,
    rng: np.random.Generator,
) -> Box | None:
    """Choose what is cut out of the source; None if no attempt contains enough of the object.

    All attempts are drawn at once, and the first that suits is taken.
    """
    bounds = _pixel_bounds(settings, shape)
    halves = []
    for side, (low, high) in zip(shape, bounds, strict=True):
        half = (GAMMA_OFFSET + rng.gamma(GAMMA_SHAPE, GAMMA_SCALE)) * side
        halves.append(int(np.clip(half, low, high)))
    centres = []
    for side, (low, _) in zip(shape, bounds, strict=True):
        centres.append(rng.integers(low, side - low, ATTEMPTS))
    centre = np.stack(centres, 1)  # [attempts, 2]
    starts = np.maximum(centre - halves, 0)
    stops = np.minimum(centre + halves, shape)
    chosen = 0
    if source_object is not None:
        areas = (stops - starts).prod(1)
        enough = _count_object(source_object, starts, stops) > settings.min_object * areas
        if not enough.any():
            return None
        chosen = int(enough.argmax())
    top, left = starts[chosen].tolist()
    bottom, right = stops[chosen].tolist()
    return slice(top, bottom), slice(left, right)


def _count_object(
    source_object: Mask, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    """Return how many pixels of the object each box contains; starts and stops are [n, 2]."""
    total = cv2.integral(source_object.view(np.uint8))
    top, left = starts.T
    bottom, right = stops.T
    count = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    return np.asarray(count, np.int32)


def _resized(cut: Box, shape: Shape, settings: BlendSettings, rng: np.random.Generator) -> Shape:
    """Draw height and width of a resized patch, with its proportions as far as the bounds allow."""
    height_bounds, width_bounds = _pixel_bounds(settings, shape)
    rows, columns = cut
    height = rows.stop - rows.start
    width = columns.stop - columns.start
    factor = np.clip(rng.normal(1, RESIZE_STD), *settings.resize)
    new_height = np.clip(factor * height, *height_bounds)
    new_width = int(np.clip(int(new_height / height * width), *width_bounds))
    return int(np.clip(int(new_width / width * height), *height_bounds)), new_width


def _choose_place(
    size: Shape,
    patch_object: Mask | None,
    image_object: Mask | None,
    shape: Shape,
    settings: BlendSettings,
    rng: np.random.Generator,
) -> Box | None:
    """Choose where in the image a patch of this size is pasted; None if no attempt suits."""
    starts = []
    for length, side in zip(size, shape, strict=True):
        starts.append(rng.integers(1, side - 2 * (length // 2) - 1, ATTEMPTS))
    corners: list[list[int]] = np.stack(starts, 1).tolist()
    if patch_object is None or image_object is None:
        return _box_at(corners[0], size)
    pixels = np.count_nonzero(patch_object)
    if pixels <= settings.min_object * patch_object.size:
        return None
    for corner in corners:
        box = _box_at(corner, size)
        overlap = np.count_nonzero(image_object[box] & patch_object)
        if overlap > settings.min_overlap * pixels:
            return box
    return None


def _box_at(corner: list[int], size: Shape) -> Box:
    top, left = corner
    return slice(top, top + size[0]), slice(left, left + size[1])


def _solvable(size: Shape) -> bool:
    """Whether a patch is large enough for OpenCV's solver; its border of one pixel is given."""
    height = size[0] - 2
    width = size[1] - 2
    return min(height, width) >= MIN_SIDE and height * width >= MIN_PIXELS


def _paste(image: Image, patch: Image, place: Box) -> Box:
    """Blend the patch into `image` at `place`, in place; return the box that was solved for.

    The border of the mask stays 0. OpenCV solves for the bounding box of the mask alone, so it gets
    only the place of the patch: the result is that of the whole image.
    """
    height, width = patch.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    mask[1:-1, 1:-1] = 255
    centre = (1 + (width - 2) // 2, 1 + (height - 2) // 2)
    target = np.ascontiguousarray(image[place])
    image[place] = cv2.seamlessClone(patch, target, mask, centre, cv2.NORMAL_CLONE)
    rows, columns = place
    return slice(rows.start + 1, rows.stop - 1), slice(columns.start + 1, columns.stop - 1)
