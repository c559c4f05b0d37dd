"""Patch-blended synthetic anomalies: patches of one good picture, blended into another by Poisson's equation.

After Schlüter et al., "Natural synthetic anomalies for self-supervised anomaly detection and localization" (NSA, ECCV
2022), as Chiu & Lai's self-supervised normalising flow uses it (repository self-supervised-flow, CVPRW 2023): source
gradients for all products, the source is the picture drawn before, and both are sharpened now and then.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from flawline.runtime.console import log
from flawline.runtime.image import Image
from flawline.train import TrainError

Mask = npt.NDArray[np.bool_]
Box = tuple[slice, slice]

ATTEMPTS = 200  # at a place that suits, once for the cut and once for the paste
LEAST_PIXELS = 50  # of a patch's mask; OpenCV's solver fails on slivers
LEAST_SIDE = 3  # of a patch's mask: one pixel to solve for between two that are given
GAMMA_SHAPE, GAMMA_SCALE, GAMMA_OFFSET = (
    2.0,
    0.05,
    0.03,
)  # of a half-width, as a fraction of the picture's side
RESIZE_SPREAD = 0.5  # standard deviation of the factor by which a patch is resized
GRAIN = 7  # pixels of the median that cleans the object's mask
SHARPEN_CHANCE, SHARPEN_FACTOR = 0.5, 2.0
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # PIL's ImageFilter.SMOOTH


@dataclass(frozen=True)
class Blend:
    """How anomalies are made for one product. The defaults are those of an object without a plain background.

    heights, widths: least and greatest half-width of a patch on either axis, as fractions of the picture's side. A
    patch is cut within them; resized, its whole sides are held to the same numbers, as the authors' code does.
    patches: the most in one picture; the first is always tried, each further one with probability 1/2.
    resize: bounds of the factor by which a patch is resized.
    background, threshold: grey level of a plain background, and how much further off the object is; None: no such.
    min_object: the least fraction of a patch that is object. min_overlap: the least fraction of the patch's object
    that is to come to lie on the object of the other picture. Both matter only with a background.
    """

    heights: tuple[float, float] = (0.03, 0.40)
    widths: tuple[float, float] = (0.03, 0.40)
    patches: int = 3
    resize: tuple[float, float] = (0.7, 1.3)
    background: float | None = None
    threshold: float = 0.0
    min_object: float = 0.0
    min_overlap: float = 0.0


TEXTURE = Blend(patches=4, resize=(0.5, 2.0))
_BRIGHT = Blend(background=200, threshold=60, min_object=0.70, min_overlap=0.25)
_DARK = replace(_BRIGHT, background=20, threshold=20)

# MVTec AD, then BTAD and DAGM 2007, whose products bear numbers.
PRODUCTS: dict[str, Blend] = {
    **dict.fromkeys(("carpet", "grid", "leather", "tile", "wood"), TEXTURE),
    "bottle": _BRIGHT,
    "cable": Blend(heights=(0.05, 0.40), widths=(0.05, 0.40)),
    "capsule": replace(_BRIGHT, heights=(0.03, 0.15)),
    "hazelnut": replace(_DARK, heights=(0.03, 0.35), widths=(0.03, 0.35)),
    "metal_nut": replace(_DARK, min_object=0.50),
    "pill": replace(_DARK, heights=(0.03, 0.20)),
    "screw": replace(
        _BRIGHT, heights=(0.03, 0.12), widths=(0.03, 0.12), patches=4, min_object=0.50
    ),
    "toothbrush": replace(_DARK, widths=(0.03, 0.20), min_object=0.25),
    "transistor": Blend(),
    "zipper": replace(_BRIGHT, widths=(0.03, 0.20), patches=4),
    "btad_01": _BRIGHT,
    "btad_02": TEXTURE,
    "btad_03": _BRIGHT,
    **{f"dagm_class{number}": TEXTURE for number in range(1, 11)},
}


def known_products() -> list[str]:
    """The names that `settings` knows."""
    return list(PRODUCTS)


def settings(product: str | None) -> Blend:
    """The product's own settings, or those of a texture: they ask nothing of the picture. Never raises."""
    return PRODUCTS.get((product or "").lower(), TEXTURE)


def guess_product(folder: Path) -> str | None:
    """The known product whose folder this is by its name (bottle, mvtec_bottle; DAGM's Class1; BTAD's 01, below a
    folder named after BTAD only, since other lines number their products too), or None."""
    named = Path(os.path.abspath(folder))  # "." has a name; a link keeps its own
    name, above = named.name.lower(), named.parent.name.lower()
    names = [name, name.removeprefix("mvtec_"), f"dagm_{name}"] + [
        f"btad_{name}"
    ] * above.startswith(("btad", "btech"))
    return next((known for known in names if known in PRODUCTS), None)


def choose_product(product: str | None, data: Path) -> str | None:
    """The product given, or the one that the folder's name tells; says aloud which settings that means. Raises
    TrainError for a name that is not known."""
    if product is not None and product.lower() not in known_products():
        raise TrainError(
            f"--product {product}: is unknown; leave it out or take one of {', '.join(known_products())}"
        )
    found = product or guess_product(data)
    if found is None:
        log(
            f"settings of a texture: {data} is named after no product that has its own; --product names one"
        )
    else:
        log(
            f"settings of {found}"
            + ("" if product else ", which the folder is named after; --product names another")
        )
    return found


def sharpen(image: Image) -> Image:
    """PIL's ImageEnhance.Sharpness of factor 2: uint8 [H, W, 3] to a new array of the same; border pixels stay."""
    smooth = cv2.filter2D(image, -1, SMOOTH)
    out = np.asarray(
        cv2.addWeighted(image, SHARPEN_FACTOR, smooth, 1 - SHARPEN_FACTOR, 0), np.uint8
    )
    out[[0, -1]], out[:, [0, -1]] = image[[0, -1]], image[:, [0, -1]]
    return out


def blend(image: Image, source: Image, how: Blend, rng: np.random.Generator) -> tuple[Image, Mask]:
    """`image` with patches of `source` blended in, and where they are.

    image, source: uint8 [H, W, 3] BGR of equal size, not modified. Returns a new uint8 [H, W, 3] and bool [H, W]: the
    rectangles that were solved for, outside of which no pixel changes. Between two pictures that look the same there, a
    patch may leave no trace. Where no patch finds its place in 200 attempts, the picture is unchanged and the mask
    empty. Raises ValueError for pictures of another kind or size.
    """
    if (
        not image.shape == source.shape == (*image.shape[:2], 3)
        or not image.dtype == source.dtype == np.uint8
    ):
        found = " and ".join(
            f"{picture.dtype} {list(picture.shape)}" for picture in (image, source)
        )
        raise ValueError(f"expected two pictures uint8 [H, W, 3] of equal size, got {found}")
    theirs, ours = object_mask(source, how), object_mask(image, how)
    out, mask = image.copy(), np.zeros(image.shape[:2], bool)
    for number in range(how.patches):
        if number > 0 and rng.random() < 0.5:
            continue
        box = _cut(image.shape[:2], theirs, how, rng)
        if box is None:
            continue
        size = _resized(box, image.shape[:2], how, rng)
        part = None if theirs is None else cv2.resize(theirs[box], size[::-1]) > 0
        patch = np.asarray(cv2.resize(source[box], size[::-1]), np.uint8)
        inner = _paste(out, patch, _place(size, part, ours, mask.shape, how, rng))
        if inner is not None:
            mask[inner] = True
    return out, mask


def object_mask(image: Image, how: Blend) -> Image | None:
    """Where a picture [H, W, 3] is not its plain background: uint8 [H, W], 0 or 1; None where it has none."""
    if how.background is None:
        return None
    grey = image.astype(np.float32) @ np.ones(3, np.float32)  # sums of three channels, exact
    off = (np.abs(grey - 3 * how.background) > 3 * how.threshold).astype(np.uint8)
    # The median of zeros and ones is what most of them are; to count them is ten times as fast.
    count = cv2.boxFilter(
        off, cv2.CV_8U, (GRAIN, GRAIN), normalize=False, borderType=cv2.BORDER_REPLICATE
    )
    return np.asarray(count > GRAIN * GRAIN // 2, np.uint8)


def _limits(how: Blend, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """The bounds of `how` in pixels for either axis."""
    return [
        (max(1, round(low * side)), max(1, round(high * side)))
        for (low, high), side in zip((how.heights, how.widths), shape, strict=True)
    ]


def _cut(
    shape: tuple[int, ...], objects: Image | None, how: Blend, rng: np.random.Generator
) -> Box | None:
    """Where in the source a patch is cut out; None where no attempt hits enough of the object. All attempts are drawn
    at once, and the first that suits is taken."""
    limits = _limits(how, shape)
    drawn = [(GAMMA_OFFSET + rng.gamma(GAMMA_SHAPE, GAMMA_SCALE)) * side for side in shape]
    half = np.array([int(np.clip(d, *bounds)) for d, bounds in zip(drawn, limits, strict=True)])
    centres = np.stack(
        [rng.integers(b[0], n - b[0], ATTEMPTS) for b, n in zip(limits, shape, strict=True)], 1
    )
    starts, stops = np.maximum(centres - half, 0), np.minimum(centres + half, shape)
    chosen = 0
    if objects is not None:
        total = cv2.integral(objects)
        (y0, x0), (y1, x1) = starts.T, stops.T
        hits = total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]
        good = np.flatnonzero(hits > how.min_object * (stops - starts).prod(1))
        if not len(good):
            return None
        chosen = int(good[0])
    (y0, x0), (y1, x1) = starts[chosen].tolist(), stops[chosen].tolist()
    return slice(y0, y1), slice(x0, x1)


def _resized(
    box: Box, shape: tuple[int, ...], how: Blend, rng: np.random.Generator
) -> tuple[int, int]:
    """Height and width of a patch once resized: its proportions are kept as far as the bounds let them."""
    rows, columns = _limits(how, shape)
    height, width = (part.stop - part.start for part in box)
    scale = np.clip(rng.normal(1, RESIZE_SPREAD), *how.resize)
    tall = np.clip(scale * height, *rows)
    wide = int(np.clip(int(tall / height * width), *columns))
    return int(np.clip(int(wide / width * height), *rows)), wide


def _place(
    size: tuple[int, int],
    part: npt.NDArray[np.bool_] | None,
    objects: Image | None,
    shape: tuple[int, ...],
    how: Blend,
    rng: np.random.Generator,
) -> Box | None:
    """Where in the picture a patch is put, of which `part` is object; None where no attempt suits."""
    tops = np.stack(
        [rng.integers(1, n - 2 * (s // 2) - 1, ATTEMPTS) for s, n in zip(size, shape, strict=True)],
        1,
    )
    boxes = ((slice(y, y + size[0]), slice(x, x + size[1])) for y, x in tops.tolist())
    if part is None or objects is None:
        return next(boxes)
    ours = np.count_nonzero(part)
    if ours <= how.min_object * part.size:
        return None
    return next(
        (box for box in boxes if np.count_nonzero(objects[box] & part) > how.min_overlap * ours),
        None,
    )


def _paste(out: Image, patch: Image, box: Box | None) -> Box | None:
    """Blend the patch into `out` at the box, in place; the box that was solved for, None where it is too small.

    The border of the mask stays 0. OpenCV solves for the mask's bounding box alone, so it is given no more than the
    patch's place: the result is that of the whole picture.
    """
    height, width = patch.shape[:2]
    if (
        box is None
        or min(height, width) - 2 < LEAST_SIDE
        or (height - 2) * (width - 2) < LEAST_PIXELS
    ):
        return None
    mask = np.zeros((height, width), np.uint8)
    mask[1:-1, 1:-1] = 255
    centre = (1 + (width - 2) // 2, 1 + (height - 2) // 2)
    out[box] = cv2.seamlessClone(
        patch, np.ascontiguousarray(out[box]), mask, centre, cv2.NORMAL_CLONE
    )
    rows, columns = box
    return slice(rows.start + 1, rows.stop - 1), slice(columns.start + 1, columns.stop - 1)


class Blended:
    """Good pictures and their synthetic partners, one for each draw number from 0 on, without end.

    images: uint8 [H, W, 3] each, all of one size, never modified; best held in memory, since each is read once per pass
    and again when it is evicted. Every pass draws each picture once, in a new order. What a draw gives follows from
    the seed and its number alone: a resumed training sees what an unbroken one does, in any number of threads.
    sharpening: whether half of the pictures are sharpened, as published.
    """

    def __init__(
        self, images: Sequence[Image], how: Blend, seed: int, sharpening: bool = True
    ) -> None:
        if not len(images):
            raise ValueError("no images to blend")
        self.images, self.how, self.seed, self.chance = (
            images,
            how,
            seed,
            SHARPEN_CHANCE * sharpening,
        )
        # A picture is drawn, and is the source of the next draw: files are read once for both.
        self._read = lru_cache(32)(images.__getitem__)
        self._order = lru_cache(4)(self._shuffled)

    def _shuffled(self, epoch: int) -> list[int]:
        order = np.random.default_rng([1, self.seed, epoch]).permutation(len(self.images))
        return [int(index) for index in order]

    def index(self, draw: int) -> int:
        """Which of the images is drawn; before the first draw it is one at random."""
        epoch, place = divmod(draw, len(self.images)) if draw >= 0 else (0, -1)
        return self._order(epoch)[place]

    def sample(self, draw: int) -> tuple[Image, Image, Mask]:
        """The picture as drawn (perhaps sharpened), its synthetic partner, uint8 [H, W, 3], and where that is blended,
        bool [H, W]. The source is the picture drawn before. Arrays are the caller's own."""
        rng = np.random.default_rng([2, self.seed, draw])
        sharp = rng.random(2) < self.chance  # the picture, its source
        ours, theirs = (np.asarray(self._read(self.index(n))) for n in (draw, draw - 1))
        normal = sharpen(ours) if sharp[0] else ours.copy()
        return normal, *blend(normal, sharpen(theirs) if sharp[1] else theirs, self.how, rng)
