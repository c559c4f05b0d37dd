"""What methods without a backbone share, whose networks are trained on the pictures themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from flawline.options import option
from flawline.runtime.image import Geometry, Image
from flawline.train import TrainError
from flawline.train.method import MethodSettings

LIGHT = "light"
PUBLISHED = "published"
PUBLISHED_SIDE = 256  # of the papers' images, in pixels


@dataclass(frozen=True)
class PictureSettings(MethodSettings):
    """The settings of a method without a backbone, which would otherwise select them."""

    setting: Literal["light", "published"] = option(
        LIGHT,
        "size of the networks and of the images, and length of the training: light or published "
        "(256 x 256 pixels unless --size is given)",
        flag=True,
    )

    def __post_init__(self) -> None:
        if self.setting not in (LIGHT, PUBLISHED):
            raise TrainError(f"--setting {self.setting} is unknown; known: {LIGHT}, {PUBLISHED}")

    @property
    def default_geometry(self) -> Geometry:
        if self.setting == PUBLISHED:
            return Geometry(self.geometry.kind, PUBLISHED_SIDE, PUBLISHED_SIDE)
        return self.geometry


def planes(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Return images, uint8 BGR [N, H, W, 3], as [N, 3, H, W] from 0 to 1."""
    return image.permute(0, 3, 1, 2).to(dtype) / 255


class Planes(nn.Module):
    """Converts uint8 [N, H, W, 3] to [N, 3, H, W] from 0 to 255, the input of an exported form."""

    kind: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Its type is that of the form; nothing reads its value.
        self.register_buffer("kind", torch.zeros((), dtype=torch.float64))

    def forward(self, image: Tensor) -> Tensor:
        # The cast comes first because TensorRT reads uint8 into no other node.
        return image.to(self.kind.dtype).permute(0, 3, 1, 2)


def mean_colour(images: Sequence[Image]) -> Tensor:
    """Return the mean of images, uint8 BGR [H, W, 3] each: [3], from 0 to 1."""
    total = np.zeros(3)
    for image in images:
        total += image.mean((0, 1))
    return torch.from_numpy(total / (255 * len(images)))


def turned(image: Image, degrees: float, zoom: float = 1.0) -> Image:
    """Rotate and enlarge an image [H, W, 3] around its centre; beyond its border it is mirrored."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, zoom)
    border = cv2.BORDER_REFLECT_101
    return np.asarray(
        cv2.warpAffine(image, matrix, (width, height), borderMode=border), image.dtype
    )
