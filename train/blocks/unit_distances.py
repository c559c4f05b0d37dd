"""Distances of feature vectors that are divided by their lengths, position by position.

The squared distance of two unit vectors is 2 - 2 cos. It is small on good images, where that form
would be the difference of two nearly equal numbers; the forms below subtract the vectors instead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Shortest length that a vector is divided by, as in torch.nn.functional.normalize.
SHORTEST = 1e-12


def unit_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the squared distance of the unit vectors of two maps [N, C, h, w]: [N, h, w].

    It is from 0 to 4. A vector of zeros stays one.
    """
    difference = F.normalize(first, eps=SHORTEST) - F.normalize(second, eps=SHORTEST)
    return difference.square().sum(1)


class UnitDistance(nn.Module):
    """`unit_distance` for export, multiplied by `factor`: two maps to [N, 1, h, w].

    |a / |a| - b / |b||^2 = |a - (|a| / |b|) b|^2 / |a|^2, so that one map is scaled instead of two.
    The sums over the channels are products with a row, which CPUs compute faster than reductions of
    an axis that is not the last one.
    """

    ones: Tensor
    row: Tensor

    def __init__(self, channels: int, factor: float = 1.0) -> None:
        super().__init__()
        ones = torch.ones(1, channels, 1, 1, dtype=torch.float64)
        self.register_buffer("ones", ones)
        self.register_buffer("row", factor * ones)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        first_square = F.conv2d(first * first, self.ones).clamp_min(SHORTEST**2)
        second_square = F.conv2d(second * second, self.ones).clamp_min(SHORTEST**2)
        difference = first - second * torch.sqrt(first_square / second_square)
        return F.conv2d(difference * difference, self.row) / first_square
