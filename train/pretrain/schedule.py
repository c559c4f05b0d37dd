"""The settings of a pretraining run and its learning rate. This module imports without torch."""

from __future__ import annotations

from dataclasses import dataclass

from flawline.options import option
from flawline.train.backbones import DEFAULT_BACKBONE

LEARNING_RATE = 1.5e-3  # AdamW's, after the warm-up
WARMUP = 200  # steps
# The rate is constant, and falls to 0 over this last fraction of the images. A run can therefore be
# given more or fewer images while it is in the constant part.
DECAY = 0.3


@dataclass(frozen=True)
class PretrainingSettings:
    """The settings of a pretraining run. Each field is also a flag of the command."""

    backbone: str = option(DEFAULT_BACKBONE, "network to train, one with the levels 2 and 3")
    classes: int = option(480, "textures to tell apart")
    batch: int = option(64, "images per step")
    size: int = option(64, "image size in pixels, until the learning rate falls")
    final_size: int = option(96, "image size in pixels from then on")
    seed: int = option(0, "of the textures, the images and the first weights")


def is_decaying(done: int, total: int) -> bool:
    """Say whether the learning rate falls after `done` of `total` images."""
    return done >= (1 - DECAY) * total


def learning_rate(done: int, total: int, step: int) -> float:
    """Return the rate after `done` of `total` images: linear warm-up, constant, linear to 0."""
    warmup = (step + 1) / WARMUP
    decay = (total - done) / (DECAY * total)
    return LEARNING_RATE * min(1.0, warmup, decay)
