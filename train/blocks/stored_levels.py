"""The levels of a backbone for the good images of a training, which may be rotated."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flawline.runtime.image import Image
from flawline.train.backbones.base import Backbone
from flawline.train.blocks.flat_levels import Array, FlatLevels
from flawline.train.method import Fit

Indices = npt.NDArray[np.int64]


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
        self.levels = FlatLevels(backbone, (height, width))
        self.features: Array | None = None
        if not rotation:
            self.features = self.levels.collect(fit.images, device, folder, fit.progress)

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
        return self.levels.batch(self.features, chosen, self.device)

    @torch.no_grad()
    def _computed(self, images: Sequence[Image]) -> list[Tensor]:
        return list(self.backbone.extract(torch.from_numpy(np.stack(images)).to(self.device)))


def rotate(image: Image, degrees: float) -> Image:
    """Rotate an image [H, W, 3] around its centre to the nearest pixels; corners become black."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    rotated = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_NEAREST)
    return rotated.astype(np.uint8, copy=False)
