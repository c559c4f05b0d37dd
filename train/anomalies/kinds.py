"""Kinds of synthetic anomalies that detectors are compared on, each in several strengths.

A kind makes one anomaly in one image. Its strength is the opacity of the anomaly: at 1 it is as the
kind made it, and towards 0 it fades into the good image, so that a set of strengths has anomalies
that only the better detectors find. Methods that train against a kind name it in
`Method.trains_against`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flawline.runtime.image import Image
from flawline.train.anomalies.blend import BlendSettings, blend
from flawline.train.anomalies.perlin import combined_mask
from flawline.train.anomalies.rectangles import (
    content,
    draw_patch_size,
    draw_position,
    draw_scar,
    jitter,
    paste,
    paste_rotated,
    rotated,
)
from flawline.train.anomalies.textured import blend_texture, draw_filled
from flawline.train.anomalies.textures import ProceduralTextures, altered, is_grey, to_grey

STRENGTHS = (0.1, 0.2, 0.4)
# Different textures; three random changes make more of them.
TEXTURES = 64
# A kind that leaves the image as it is, because no place suits it, is drawn again.
ATTEMPTS = 10
# Of blended patches: half-sides as fractions of the image's, so that a patch is not most of it.
_BLEND = BlendSettings(heights=(0.03, 0.15), widths=(0.03, 0.15), patches=1)


def _patch(image: Image, other: Image, seed: int, rng: np.random.Generator) -> Image:
    shape = (image.shape[0], image.shape[1])
    size = draw_patch_size(shape, rng)
    cut = jitter(content(image, draw_position(shape, size, rng), size), rng)
    return paste(image, cut, draw_position(shape, size, rng))


def _scar(image: Image, other: Image, seed: int, rng: np.random.Generator) -> Image:
    shape = (image.shape[0], image.shape[1])
    size, angle = draw_scar(shape, rng)
    size = (min(size[0], shape[0]), min(size[1], shape[1]))
    cut = jitter(content(image, draw_position(shape, size, rng), size), rng)
    turned, _ = rotated(cut, angle)
    bounds = (min(turned.shape[0], shape[0]), min(turned.shape[1], shape[1]))
    return paste_rotated(image, cut, angle, draw_position(shape, bounds, rng))


def _texture(image: Image, other: Image, seed: int, rng: np.random.Generator) -> Image:
    shape = (image.shape[0], image.shape[1])
    filling = altered(ProceduralTextures(seed, TEXTURES).texture(shape, rng), rng)
    if is_grey(image):
        # Its colour alone would tell it from the product.
        filling = to_grey(filling)
    return blend_texture(image, filling, draw_filled(combined_mask, shape, rng), 0.0)


def _blend(image: Image, other: Image, seed: int, rng: np.random.Generator) -> Image:
    blended, _ = blend(image, other, _BLEND, rng)
    return blended


# Kind -> makes an anomaly in an image, uint8 [h, w, 3], with another good image of the same size,
# the seed of its textures and random numbers.
KINDS: dict[str, Callable[[Image, Image, int, np.random.Generator], Image]] = {
    "patch": _patch,
    "scar": _scar,
    "texture": _texture,
    "blend": _blend,
}


@dataclass(frozen=True)
class Anomaly:
    """A synthetic anomaly: the number of its good image, its kind, strength and pixels.

    pixels: uint8 [h, w, 3].
    """

    source: int
    kind: str
    strength: float
    pixels: Image


def anomalies_of(
    images: Sequence[Image], source: int, seed: int, strengths: Sequence[float] = STRENGTHS
) -> Iterator[Anomaly]:
    """Yield the anomalies of one of the good images: of every kind, in every strength.

    images: uint8 [h, w, 3] each, all of one size. The strengths of a kind show the same anomaly.
    The anomalies are a function of the arguments alone. A kind that changes nothing, such as a
    pasted patch on a plain surface, is left out.
    """
    image = images[source]
    other = images[(source + 1) % len(images)]
    for kind, make in KINDS.items():
        rng = np.random.default_rng([seed, source, zlib.crc32(kind.encode())])
        for _ in range(ATTEMPTS):
            made = make(image, other, seed, rng)
            if (made != image).any():
                break
        else:
            continue
        for strength in strengths:
            yield Anomaly(source, kind, strength, faded(image, made, strength))


def faded(image: Image, made: Image, strength: float) -> Image:
    """Return the image with the anomaly of `made` at this opacity, from 0 to 1."""
    difference = made.astype(np.float32) - image.astype(np.float32)
    return np.asarray(np.rint(image + np.float32(strength) * difference), np.uint8)
