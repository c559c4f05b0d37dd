"""Synthetic anomalies: foreign textures, blended into parts of a good image.

Zavrtanik, Kristan and Skočaj, "DRAEM: a discriminatively trained reconstruction embedding for
surface anomaly detection" (ICCV 2021). Chen et al., "A unified anomaly synthesis strategy with
gradient ascent" (GLASS, ECCV 2024), differ in the masks and in how opaque the textures are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flawline.runtime.image import Image
from flawline.train.anomalies import Mask
from flawline.train.anomalies.perlin import ATTEMPTS, Shape, combined_mask
from flawline.train.anomalies.series import ShuffledImages
from flawline.train.anomalies.sheet import outlined
from flawline.train.anomalies.textures import (
    OPERATIONS,
    Operation,
    TextureSource,
    altered,
    is_grey,
    to_grey,
)

# Of a patch of another good image, how far it is moved at least, as a fraction of both sides.
SMALLEST_SHIFT = 0.2


def draw_kept(rng: np.random.Generator) -> float:
    """Draw how much of the good image stays visible: about a half, between 0.2 and 0.8."""
    return float(np.clip(rng.normal(0.5, 0.1), 0.2, 0.8))


@dataclass(frozen=True)
class Recipe:
    """How anomalies are made of textures; the defaults are those of GLASS.

    draw_mask: draws where the texture lies, bool [H, W], for an image of this height and width; an
        empty mask is drawn again.
    draw_kept: draws which share of the good image stays visible there, from 0 to 1.
    operations: changes of a texture; three of them are applied.
    share: fraction of the draws that have an anomaly; the synthetic image of the others is the
        normal one, with an empty mask.
    own: fraction of the anomalies that are filled with another good image, moved, in place of a
        texture.
    matched: whether a texture in a grey image becomes grey. Its colour alone would otherwise
        tell it from the product.
    """

    draw_mask: Callable[[Shape, np.random.Generator], Mask] = combined_mask
    draw_kept: Callable[[np.random.Generator], float] = draw_kept
    operations: Sequence[Operation] = OPERATIONS
    share: float = 1.0
    own: float = 0.0
    matched: bool = False


class Textured(ShuffledImages):
    """Good images and their partners with textures: a `StagedAnomalies`.

    images: uint8 [H, W, 3] each, all of one size, never modified. A draw is a function of the seed
    and its number alone.
    """

    def __init__(
        self, images: Sequence[Image], textures: TextureSource, recipe: Recipe, seed: int
    ) -> None:
        super().__init__(images, seed)
        self.textures = textures
        self.recipe = recipe
        self.description = f"masks of Perlin noise, {textures.description}"

    def sources(self, draw: int) -> list[int]:
        """Return the index of the normal image and, where it is filled with one, of another."""
        rng = self.rng(draw)
        other = self._other(draw, rng)
        if other is None:
            return [self.index(draw)]
        return [self.index(draw), other]

    def _other(self, draw: int, rng: np.random.Generator) -> int | None:
        """Return the index of the good image that fills the anomaly of a draw; None: a texture."""
        by_own = rng.random() < self.recipe.own
        step = int(rng.integers(1, max(2, len(self.images))))
        if not by_own or len(self.images) == 1:
            return None
        return (self.index(draw) + step) % len(self.images)

    def sample(self, draw: int) -> tuple[Image, Image, Mask]:
        """Return the normal image, the one with an anomaly, uint8, and its mask, bool [H, W]."""
        normal, synthetic, mask, _ = self._made(draw)
        return normal, synthetic, mask

    def stages(self, draw: int) -> dict[str, Image]:
        """Return pictures of how a draw is made, uint8 [H, W, 3] each, by their labels."""
        normal, synthetic, mask, filling = self._made(draw)
        return {
            "normal": normal,
            "texture": filling,
            "mask": np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 3, 2),
            "synthetic": synthetic,
            "outlined": outlined(synthetic, mask),
        }

    def _made(self, draw: int) -> tuple[Image, Image, Mask, Image]:
        rng = self.rng(draw)
        normal = self.image(draw).copy()
        shape = (normal.shape[0], normal.shape[1])
        filling = self._filling(self._other(draw, rng), shape, rng)
        if self.recipe.matched and is_grey(normal):
            filling = to_grey(filling)
        mask = np.zeros(shape, bool)
        if rng.random() < self.recipe.share:
            mask = draw_filled(self.recipe.draw_mask, shape, rng)
        synthetic = blend_texture(normal, filling, mask, self.recipe.draw_kept(rng))
        return normal, synthetic, mask, filling

    def _filling(self, other: int | None, shape: Shape, rng: np.random.Generator) -> Image:
        if other is None:
            filling = self.textures.texture(shape, rng)
        else:
            filling = _moved(np.asarray(self.images[other]), rng)
        return altered(filling, rng, self.recipe.operations)


def draw_filled(
    draw_mask: Callable[[Shape, np.random.Generator], Mask], shape: Shape, rng: np.random.Generator
) -> Mask:
    """Draw masks until one is not empty, up to ATTEMPTS times; return the last one, [H, W]."""
    mask = draw_mask(shape, rng)
    for _ in range(ATTEMPTS):
        if mask.any():
            break
        mask = draw_mask(shape, rng)
    return mask


def blend_texture(image: Image, texture: Image, mask: Mask, kept: float) -> Image:
    """Return a copy of `image` that shows the texture where the mask is set.

    image, texture: uint8 [H, W, 3]. mask: bool [H, W]. kept: share of the image that stays visible
    below the texture, from 0 to 1.
    """
    blended: Image = image.copy()
    below = image[mask].astype(np.float32)
    above = texture[mask].astype(np.float32)
    blended[mask] = np.rint(above + np.float32(kept) * (below - above)).astype(np.uint8)
    return blended


def _moved(image: Image, rng: np.random.Generator) -> Image:
    """Move an image by a fifth of its sides or more; what leaves it at one side enters opposite."""
    low = SMALLEST_SHIFT
    shares = rng.uniform(low, 1 - low, 2)
    down = round(shares[0] * image.shape[0])
    right = round(shares[1] * image.shape[1])
    return np.roll(image, (down, right), (0, 1))
