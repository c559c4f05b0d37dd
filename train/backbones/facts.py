"""Facts about a backbone and its weights, before it is built. This module imports without torch."""

from __future__ import annotations

from dataclasses import dataclass

# The kinds of weights; any other text is the path of a file.
IMAGENET = "imagenet"
TEXTURE = "texture"
RANDOM = "random"
# The levels that train.pretrain trains; a backbone without them has no texture weights.
PRETRAINED_LEVELS = (2, 3)
# Kind -> where such weights come from.
WEIGHT_KINDS = {
    IMAGENET: "published ones, downloaded or from a package",
    TEXTURE: "in this package, trained on formulas alone",
    RANDOM: "drawn by the seed",
}


@dataclass(frozen=True)
class Level:
    """A feature map that a backbone can return: its channels, and input pixels per position."""

    channels: int
    stride: int


@dataclass(frozen=True)
class BackboneFacts:
    """Properties of a backbone that are known without building it.

    levels: the feature maps that it has, by number.
    light: whether it is small enough for a CPU at line rate; methods then choose lighter settings.
    fixed_size: the only height and width of images that it accepts, or None for any.
    normalised: whether its features have mean 0 and variance 1 at every position already.
    """

    levels: dict[int, Level]
    light: bool
    fixed_size: int | None = None
    normalised: bool = False
