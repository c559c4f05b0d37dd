"""Two levels of a residual network as one feature map, literally and in the exported form.

Both levels are averaged over 3x3 and brought to one grid; a random rotation may reduce their
channels, and the statistics of good images standardise them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.train.blocks.fused import Size, Upsample, pointwise

# Floor of a channel's standard deviation, relative to the mean over the channels: a channel that is
# constant on good images would otherwise turn any tiny change into a huge score.
MIN_RELATIVE_STD = 0.05


def average_levels(levels: Sequence[Tensor], stride: int, rotation: Tensor) -> Tensor:
    """Average a fine and a coarse level [N, C, h, w] over 3x3 and join them on one grid.

    With stride 1 the coarse level is resized to the grid of the fine one; with the stride between
    the grids, the fine level is thinned out. Then the channels are rotated, if `rotation` is not
    empty. A single level is returned as it is.
    """
    if len(levels) == 1:
        return levels[0]
    fine, coarse = levels
    fine = F.avg_pool2d(fine, 3, stride, 1)
    coarse = F.avg_pool2d(coarse, 3, 1, 1)
    if stride == 1:
        coarse = F.interpolate(coarse, size=fine.shape[2:], mode="bilinear", align_corners=False)
    joined = torch.cat([fine, coarse], 1)
    if len(rotation):
        joined = F.conv2d(joined, rotation[..., None, None])
    return joined


def random_rotation(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Return the first `rows` rows of a random rotation: [rows, columns], orthonormal."""
    basis: Tensor = torch.linalg.qr(torch.randn(columns, rows, generator=generator))[0]
    return basis.T


def channel_statistics(features: npt.NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [C] of the channels of features [n, C, h, w].

    The standard deviation is at least about MIN_RELATIVE_STD of its mean over the channels.
    """
    mean = features.mean((0, 2, 3), dtype=np.float64)
    squares = []
    for one in features:
        squares.append(np.square(one, dtype=np.float64).mean((1, 2)))
    std = np.sqrt(np.maximum(np.mean(squares, 0) - mean**2, 0))
    std = np.maximum(std, MIN_RELATIVE_STD * std.mean() + 1e-6)
    return torch.from_numpy(mean), torch.from_numpy(std)


class FusedLevels(nn.Module):
    """`average_levels`, rotation and standardisation, as one affine map per level.

    channels, grids: of the fine and of the coarse level.
    stride: of the average of the fine level, as in `average_levels`.
    mean, std: [C] of the features. rotation: [C, channels of both levels], or empty for none.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        grids: tuple[Size, ...],
        stride: int,
        mean: Tensor,
        std: Tensor,
        rotation: Tensor,
    ) -> None:
        super().__init__()
        fine = channels[0]
        self.summed = len(rotation) > 0
        if self.summed:
            weight = rotation / std[:, None]
            # The mean is subtracted once, with the first level.
            self.fine = _rotated_average(weight[:, :fine], stride, -mean / std)
            self.coarse = _rotated_average(weight[:, fine:], 1)
        else:
            self.fine = _average(mean[:fine], std[:fine], stride)
            self.coarse = _average(mean[fine:], std[fine:], 1)
        self.match: nn.Module = nn.Identity()
        if stride == 1:
            self.match = Upsample(grids[1], grids[0])

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        fine = self.fine(fine)
        coarse = self.match(self.coarse(coarse))
        if self.summed:
            return fine + coarse
        return torch.cat([fine, coarse], 1)


def _rotated_average(weight: Tensor, stride: int, bias: Tensor | None = None) -> nn.Module:
    """Return a 3x3 average and a product with a matrix [rows, C]."""
    channels = weight.shape[1]
    average = _average(weight.new_zeros(channels), weight.new_ones(channels), stride)
    return nn.Sequential(average, pointwise(weight.contiguous(), bias))


def _average(mean: Tensor, std: Tensor, stride: int) -> nn.Module:
    """Return a zero-padded 3x3 average of each channel, then standardised by mean and std [C]."""
    channels = len(mean)
    conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, dtype=mean.dtype)
    weight = 1 / (9 * std)
    conv.weight.data = weight[:, None, None, None].expand(-1, 1, 3, 3).contiguous()
    assert conv.bias is not None
    conv.bias.data = -mean / std
    return conv
