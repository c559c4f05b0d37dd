"""A backbone applied to rotations of a square image, at several scales.

The angles are spaced evenly over a turn. Those between right angles take the nearest pixel and
leave the corners black; right angles are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flawline.runtime.image import Image
from flawline.train.backbones.pyramid import ImagePyramid

RIGHT_ANGLES = 4


class RotatedPyramid(ImagePyramid):
    """The maps of one level for all rotations of an image, one map per scale, from one network.

    Maps normalised RGB [N, 3, S, S] to [N * angles, C, h, w] per scale; the rotations of an image
    are consecutive. Each scale has half the height and width of the one before it.

    side: S, in pixels, which 2^(scales - 1) divides. angles: a multiple of 4.
    """

    sources: Tensor  # int64 [angles / 4 - 1, S * S]: see `tilt_source`

    def __init__(self, name: str, level: int, side: int, scales: int, angles: int) -> None:
        super().__init__(name, (level,), [2**scale for scale in range(scales)])
        self.side = side
        sources = [tilt_source(side, 360 * tilt / angles) for tilt in range(1, angles // 4)]
        stacked = np.array(sources, np.int64).reshape(-1, side * side)
        self.register_buffer("sources", torch.from_numpy(stacked), persistent=False)

    @property
    def angles(self) -> int:
        """The number of rotations of an image."""
        return RIGHT_ANGLES * (1 + len(self.sources))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.upright(self._rotate(x))

    def upright(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the map of each scale of normalised RGB [N, 3, S, S], without rotations."""
        return super().forward(x)

    def _rotate(self, x: Tensor) -> Tensor:
        """Return all rotations of planes [N, 3, S, S] as [N * angles, 3, S, S]."""
        tilted = [x]
        pixels = x.flatten(2)
        black = -x.new_tensor(self.mean_rgb) / x.new_tensor(self.std_rgb)
        for source in self.sources:
            inside = source < self.side**2
            taken = pixels[:, :, source.clamp(max=self.side**2 - 1)]
            taken = torch.where(inside, taken, black[:, None])
            tilted.append(taken.view_as(x))
        rotated = list(tilted)
        rotated += [planes.transpose(2, 3).flip(2) for planes in tilted]
        rotated += [planes.flip(2, 3) for planes in tilted]
        rotated += [planes.transpose(2, 3).flip(3) for planes in tilted]
        return torch.stack(rotated, 1).flatten(0, 1)


class FusedRotatedPyramid(nn.Module):
    """`RotatedPyramid` for export: the rotations are joined on an axis of fixed size.

    pyramid: in float64, with its normalisation folded as `fold_backbone` does. black: [3], a black
    pixel of what it then reads.
    """

    black: Tensor
    sources: Tensor  # int64 [tilts * S * S]

    def __init__(self, pyramid: RotatedPyramid, black: Tensor) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.side = pyramid.side
        self.register_buffer("black", black.view(3, 1))
        # The angles below 90 degrees, of which 0 is the image as it is.
        upright = torch.arange(self.side**2, device=pyramid.sources.device)
        sources = torch.cat([upright, pyramid.sources.flatten()])
        self.tilts = 1 + len(pyramid.sources)
        self.register_buffer("sources", sources)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.pyramid.upright(self._rotate(x))

    def _rotate(self, x: Tensor) -> Tensor:
        planes = self._tilt(x) if self.tilts > 1 else x
        across = planes.transpose(2, 3)
        rotated = [planes, across.flip(2), planes.flip(2, 3), across.flip(3)]
        return torch.cat(rotated, 1).reshape(-1, 3, self.side, self.side)

    def _tilt(self, x: Tensor) -> Tensor:
        """Return the angles below 90 degrees, [N, 3 * tilts, S, S]."""
        pixels = x.reshape(-1, 3, self.side**2)
        # A black pixel behind the others, made of one of them because N is not constant.
        pixels = torch.cat([pixels, pixels[:, :, :1] * 0 + self.black], 2)
        taken = pixels.index_select(2, self.sources)
        taken = taken.reshape(-1, 3, self.tilts, self.side**2).transpose(1, 2)
        return taken.reshape(-1, 3 * self.tilts, self.side, self.side)


def tilt_source(side: int, degrees: float) -> npt.NDArray[np.int64]:
    """Return which pixel of a square image each pixel of its rotation is: int64 [side * side].

    Pixels are counted row by row; side * side stands for one outside of the image. The rotation is
    counter-clockwise, about the centre, by the nearest pixel.
    """
    radians = math.radians(degrees)
    centre = (side - 1) / 2
    rows, columns = np.mgrid[:side, :side] - centre
    # Rows count downwards.
    source_columns = math.cos(radians) * columns - math.sin(radians) * rows + centre
    source_rows = math.sin(radians) * columns + math.cos(radians) * rows + centre
    row = np.floor(source_rows + 0.5).astype(np.int64)
    column = np.floor(source_columns + 0.5).astype(np.int64)
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    return np.where(inside, row * side + column, side**2).ravel()


def rotate_images(images: Sequence[Image], degrees: Sequence[float]) -> Tensor:
    """Rotate each of n square images, uint8 [S, S, 3], by its angle: uint8 [n, S, S, 3].

    As `tilt_source` says, with black corners.
    """
    rotated = []
    for image, angle in zip(images, degrees, strict=True):
        side = len(image)
        pixels = np.concatenate([image.reshape(-1, 3), np.zeros((1, 3), np.uint8)])
        rotated.append(pixels[tilt_source(side, angle)].reshape(side, side, 3))
    return torch.from_numpy(np.stack(rotated))
