"""What is known of a backbone before it is built. This module imports without torch."""

from __future__ import annotations

from dataclasses import dataclass


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
