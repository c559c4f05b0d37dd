"""The order in which series of synthetic anomalies draw the good images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from flawline.runtime.image import Image


class ShuffledImages:
    """An endless series of draws, numbered from 0 on, from good images.

    images: uint8 [H, W, 3] each, all of one size, never modified. Raises ValueError where there are
    none.

    Every pass draws each image once, in a new order. The image and the random numbers of a draw are
    functions of the seed and its number alone, so that a resumed training sees what an
    uninterrupted one sees.
    """

    def __init__(self, images: Sequence[Image], seed: int) -> None:
        if not len(images):
            raise ValueError("there are no images to make anomalies of")
        self.images = images
        self.seed = seed
        self._order = lru_cache(4)(self._shuffled)

    def _shuffled(self, epoch: int) -> list[int]:
        order: list[int] = (
            np.random.default_rng([1, self.seed, epoch]).permutation(len(self.images)).tolist()
        )
        return order

    def index(self, draw: int) -> int:
        """Return the index of the image of a draw."""
        epoch, place = divmod(draw, len(self.images))
        return self._order(epoch)[place]

    def image(self, draw: int) -> Image:
        """Return the image of a draw as it is in the data set."""
        return np.asarray(self.images[self.index(draw)])

    def rng(self, draw: int) -> np.random.Generator:
        """Return the random numbers of a draw."""
        return np.random.default_rng([2, self.seed, draw])
