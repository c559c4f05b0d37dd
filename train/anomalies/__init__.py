"""Synthetic anomalies: defects made of good images, for methods that train against them.

This module imports without torch. A method that trains with synthetic anomalies returns a
`SyntheticAnomalies` from its `anomalies` class method.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from flawline.runtime.image import Image

Mask = npt.NDArray[np.bool_]


class SyntheticAnomalies(Protocol):
    """An endless series of good images and their synthetic partners, numbered from 0 on."""

    @property
    def description(self) -> str:
        """How the anomalies are made, in a few words."""

    def sources(self, draw: int) -> list[int]:
        """Return the indices of the images of a draw; the first is its normal image."""

    def sample(self, draw: int) -> tuple[Image, Image, Mask]:
        """Return the normal and the synthetic image, uint8 [H, W, 3], and where they may differ."""


@runtime_checkable
class StagedAnomalies(SyntheticAnomalies, Protocol):
    """Anomalies that are made in several steps, which can be drawn."""

    def stages(self, draw: int) -> dict[str, Image]:
        """Return pictures of how a draw is made, uint8 [H, W, 3] each, by their labels."""
