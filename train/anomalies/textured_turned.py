"""Foreign textures in good images, some of which are rotated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flawline.runtime.image import Image
from flawline.train.anomalies.textured import Recipe, Textured
from flawline.train.anomalies.textures import TextureSource
from flawline.train.blocks.pictures import turned

# Degrees by which an image is rotated at most.
DEGREES = 90.0


class TexturedTurned(Textured):
    """Like `Textured`, with good images that are rotated at random.

    turned: probability of a rotation.
    """

    def __init__(
        self,
        images: Sequence[Image],
        textures: TextureSource,
        recipe: Recipe,
        seed: int,
        turned: float,
    ) -> None:
        super().__init__(images, textures, recipe, seed)
        self.turned = turned

    def image(self, draw: int) -> Image:
        """Return the good image of a draw."""
        rng = np.random.default_rng([3, self.seed, draw])
        image = super().image(draw)
        if rng.random() < self.turned:
            image = turned(image, float(rng.uniform(-DEGREES, DEGREES)))
        return image
