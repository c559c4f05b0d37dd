"""How long networks are trained, and at which learning rate."""

from __future__ import annotations

import math
from typing import NamedTuple

from flawline.train.loop import half_cosine


class Drop(NamedTuple):
    """From a share of the training on, the learning rate is the first one times a factor."""

    share: float
    factor: float


class Schedule(NamedTuple):
    """The length of a training, and its learning rate.

    batch: images per step. learning_rate: of the first step. steps: of the default length.
    epochs: passes over the images; the default length where `steps` is None.
    drops: how the learning rate changes, in order; None: it falls to 0 along half a cosine.
    """

    batch: int
    learning_rate: float
    steps: int | None = None
    epochs: int = 1
    drops: tuple[Drop, ...] | None = None

    def length(self, images: int, epochs: int | None) -> int:
        """Return the steps of so many passes over the images; None: those of the default length."""
        if epochs is None and self.steps is not None:
            return self.steps
        return (epochs or self.epochs) * math.ceil(images / self.batch)

    def rate(self, share: float) -> float:
        """Return the learning rate after a share of the training, from 0 to 1."""
        if self.drops is None:
            return self.learning_rate * half_cosine(share)
        factor = 1.0
        for drop in self.drops:
            if share >= drop.share:
                factor = drop.factor
        return self.learning_rate * factor
