"""The levels of a frozen backbone for the good images of a training."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flawline.runtime.image import Image
from flawline.train.backbones.base import Backbone
from flawline.train.blocks.patches import collect_features
from flawline.train.loop import Indices
from flawline.train.method import Fit


def flatten_levels(levels: Sequence[Tensor]) -> Tensor:
    """Join levels [N, C, h, w] to one vector per image, [N, values]."""
    return torch.cat([level.flatten(1) for level in levels], 1)


@contextmanager
def stored_levels(backbone: Backbone, fit: Fit, device: torch.device) -> Iterator[StoredLevels]:
    """Compute the levels of the images of a training; they are stored until the block ends.

    Raises TrainError as `collect_features` does.
    """
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        yield StoredLevels(backbone, fit, device, folder)


class StoredLevels:
    """The levels of the images of a training, computed once.

    fit: its images are uint8 [H, W, 3] BGR. folder: holds the features on disk, if they are many;
    it must exist as long as this object. Raises TrainError as `collect_features` does.
    """

    def __init__(self, backbone: Backbone, fit: Fit, device: torch.device, folder: str) -> None:
        self.backbone = backbone
        self.device = device
        height, width = np.asarray(fit.images[0]).shape[:2]
        self.shapes: list[tuple[int, int, int]] = []
        for channels, grid in zip(backbone.channels, backbone.grids(height, width), strict=True):
            self.shapes.append((channels, *grid))
        # One vector per image.
        self.features: npt.NDArray[np.float32] = collect_features(
            fit.images, self._flat, device, folder, fit.progress
        )

    def _flat(self, image: Tensor) -> Tensor:
        return flatten_levels(self.backbone.extract(image))

    def __len__(self) -> int:
        return len(self.features)

    def of(self, chosen: Indices) -> list[Tensor]:
        """Return the levels [N, C, h, w] of the chosen images, on the device."""
        return self._split(torch.from_numpy(self.features[chosen]).to(self.device))

    def of_pass(self, number: int, chosen: Indices) -> list[Tensor]:
        """Return what `of` does: the images are the same in every pass."""
        return self.of(chosen)

    def of_all(self) -> list[Tensor]:
        """Return the levels [n, C, h, w] of all images, where they are stored."""
        return self._split(torch.from_numpy(self.features))

    def _split(self, flat: Tensor) -> list[Tensor]:
        levels = []
        start = 0
        for shape in self.shapes:
            stop = start + int(np.prod(shape))
            levels.append(flat[:, start:stop].view(-1, *shape))
            start = stop
        return levels


class RotatedLevels:
    """The levels of the images of a training, which every pass rotates by other angles.

    fit: as in `StoredLevels`; its seed decides about the angles. rotation: the largest one, in
    degrees.
    """

    def __init__(self, backbone: Backbone, fit: Fit, device: torch.device, rotation: float) -> None:
        self.backbone = backbone
        self.fit = fit
        self.device = device
        self.rotation = rotation

    def of(self, chosen: Indices) -> list[Tensor]:
        """Return the levels [N, C, h, w] of the chosen images as they are, on the device."""
        return self._computed([np.asarray(self.fit.images[index]) for index in chosen])

    def of_pass(self, number: int, chosen: Indices) -> list[Tensor]:
        """Return the levels [N, C, h, w] of the chosen images as pass `number` sees them."""
        images = []
        for index in chosen.tolist():
            rng = np.random.default_rng((self.fit.seed, number, index))
            angle = rng.uniform(-self.rotation, self.rotation)
            images.append(rotate(np.asarray(self.fit.images[index]), angle))
        return self._computed(images)

    @torch.no_grad()
    def _computed(self, images: Sequence[Image]) -> list[Tensor]:
        return list(self.backbone.extract(torch.from_numpy(np.stack(images)).to(self.device)))


def rotate(image: Image, degrees: float) -> Image:
    """Rotate an image [H, W, 3] around its centre to the nearest pixels; corners become black."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    rotated = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_NEAREST)
    return rotated.astype(np.uint8, copy=False)
