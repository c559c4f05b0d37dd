"""Several feature maps of an image as one vector, the form in which a training stores them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flawline.runtime.image import Image
from flawline.train.backbones.base import Backbone
from flawline.train.blocks.patches import collect_features
from flawline.train.progress import Progress

Array = npt.NDArray[np.float32]


def flatten_levels(levels: Sequence[Tensor]) -> Tensor:
    """Join levels [N, C, h, w] to one vector per image, [N, values]."""
    return torch.cat([level.flatten(1) for level in levels], 1)


class FlatLevels:
    """The levels of a frozen backbone for images of one size, as one vector per image.

    size: height and width of the images, in pixels.
    """

    def __init__(self, backbone: Backbone, size: tuple[int, int]) -> None:
        self.backbone = backbone
        self.shapes: list[tuple[int, int, int]] = []
        for channels, grid in zip(backbone.channels, backbone.grids(*size), strict=True):
            self.shapes.append((channels, *grid))

    def collect(
        self, images: Sequence[Image], device: torch.device, folder: str, progress: Progress
    ) -> Array:
        """Compute the levels of images, uint8 [H, W, 3] each: float32 [n, values].

        folder, progress: as in `collect_features`, also for the errors.
        """
        return collect_features(images, self._flat, device, folder, progress)

    def _flat(self, image: Tensor) -> Tensor:
        return flatten_levels(self.backbone.extract(image))

    def batch(
        self, features: Array, chosen: npt.NDArray[np.int64], device: torch.device
    ) -> list[Tensor]:
        """Return the levels [N, C, h, w] of the chosen images of `collect`'s array."""
        return self.split(torch.from_numpy(features[chosen]).to(device))

    def split(self, flat: Tensor) -> list[Tensor]:
        """Split [N, values] into the levels [N, C, h, w]; the inverse of `flatten_levels`."""
        levels = []
        start = 0
        for shape in self.shapes:
            stop = start + int(np.prod(shape))
            levels.append(flat[:, start:stop].view(-1, *shape))
            start = stop
        return levels
