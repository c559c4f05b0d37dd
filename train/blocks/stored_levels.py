"""The levels of a backbone as flat vectors, and those of the good images of a training."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flawline.runtime.image import Image
from flawline.train.backbones.base import Backbone
from flawline.train.blocks.fused import Size
from flawline.train.blocks.patches import collect_features
from flawline.train.method import Fit

Indices = npt.NDArray[np.int64]


def flatten_levels(levels: Sequence[Tensor]) -> Tensor:
    """Return levels [N, C, h, w] of any sizes as one vector per image, [N, values]."""
    return torch.cat([level.flatten(1) for level in levels], 1)


def unflatten_levels(flat: Tensor, channels: Sequence[int], grids: Sequence[Size]) -> list[Tensor]:
    """Split [N, values] into the levels [N, C, h, w] with these channels and grids."""
    levels = []
    start = 0
    for count, (height, width) in zip(channels, grids, strict=True):
        stop = start + count * height * width
        levels.append(flat[:, start:stop].view(-1, count, height, width))
        start = stop
    return levels


class GoodLevels:
    """The levels of the images of a training, computed once or, if they are rotated, every time.

    fit: its images are good ones, uint8 [H, W, 3] BGR, and their seed decides about the angles.
    rotation: the largest rotation of an image in a pass of the training, in degrees, 0 for none.
    folder: holds the features on disk, if they are many; it must exist as long as this object.
    """

    def __init__(
        self, backbone: Backbone, fit: Fit, device: torch.device, rotation: float, folder: str
    ) -> None:
        self.backbone = backbone
        self.fit = fit
        self.device = device
        self.rotation = rotation
        height, width = np.asarray(fit.images[0]).shape[:2]
        self.grids = backbone.grids(height, width)
        self.features: npt.NDArray[np.float32] | None = None
        if not rotation:
            self.features = collect_features(
                fit.images, self._flat_levels, device, folder, fit.progress
            )

    def _flat_levels(self, image: Tensor) -> Tensor:
        return flatten_levels(self.backbone.extract(image))

    def upright(self, index: int) -> list[Tensor]:
        """Return the levels [1, C, h, w] of an image as it is."""
        if self.features is not None:
            return self._stored(np.array([index]))
        return self._computed([np.asarray(self.fit.images[index])])

    def of_pass(self, number: int, chosen: Indices) -> list[Tensor]:
        """Return the levels [N, C, h, w] of the chosen images as pass `number` sees them."""
        if self.features is not None:
            return self._stored(chosen)
        images = []
        for index in chosen.tolist():
            rng = np.random.default_rng((self.fit.seed, number, index))
            angle = rng.uniform(-self.rotation, self.rotation)
            images.append(rotate(np.asarray(self.fit.images[index]), angle))
        return self._computed(images)

    def _stored(self, chosen: Indices) -> list[Tensor]:
        assert self.features is not None
        flat = torch.from_numpy(self.features[chosen]).to(self.device)
        return unflatten_levels(flat, self.backbone.channels, self.grids)

    @torch.no_grad()
    def _computed(self, images: Sequence[Image]) -> list[Tensor]:
        return list(self.backbone.extract(torch.from_numpy(np.stack(images)).to(self.device)))


def rotate(image: Image, degrees: float) -> Image:
    """Rotate an image [H, W, 3] around its centre to the nearest pixels; corners become black."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    rotated = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_NEAREST)
    return rotated.astype(np.uint8, copy=False)
