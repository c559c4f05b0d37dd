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
    """`unit_distance` for export: two maps [N, C, h, w] to [N, 1, h, w].

    |a / |a| - b / |b|| = |a - (|a| / |b|) b| / |a|, so that one map is scaled instead of two.
    """

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        length = _lengths(first).clamp_min(SHORTEST)
        ratio = length / _lengths(second).clamp_min(SHORTEST)
        distance = _lengths(first - second * ratio) / length
        return distance * distance


def _lengths(x: Tensor) -> Tensor:
    """Return the lengths of vectors [N, C, h, w]: [N, 1, h, w]."""
    lengths: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return lengths
