"""Foreign textures in rotated good images, or in windows of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flawline.runtime.image import Image
from flawline.train.anomalies.textured import Recipe, Textured
from flawline.train.anomalies.textures import TextureSource
from flawline.train.blocks.pictures import random_crop, turned

# Degrees by which an image is rotated at most.
DEGREES = 90.0


class TexturedWindows(Textured):
    """Like `Textured`, with good images that are rotated at random or cut to random windows.

    crop: side of the windows in pixels, None for whole images. turned: probability of a rotation.
    """

    def __init__(
        self,
        images: Sequence[Image],
        textures: TextureSource,
        recipe: Recipe,
        seed: int,
        crop: int | None,
        turned: float,
    ) -> None:
        super().__init__(images, textures, recipe, seed)
        self.crop = crop
        self.turned = turned

    def image(self, draw: int) -> Image:
        """Return the good image of a draw."""
        rng = np.random.default_rng([3, self.seed, draw])
        image = super().image(draw)
        if rng.random() < self.turned:
            image = turned(image, float(rng.uniform(-DEGREES, DEGREES)))
        if self.crop is not None:
            image = image[random_crop(image.shape, self.crop, rng)]
        return image
