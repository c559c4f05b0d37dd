"""A Gaussian filter that ends at 3 sigma and mirrors the image without repeating its edge.

This is torchvision's GaussianBlur of 2 * ceil(3 sigma) + 1 taps, and cv2's with BORDER_REFLECT_101.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def mirrored_gaussian(planes: Tensor, sigma: float) -> Tensor:
    """Filter planes [N, 1, H, W], each side of which is longer than 3 sigma."""
    taps = _taps(sigma).to(planes)
    radius = len(taps) // 2
    padded = F.pad(planes, (radius, radius, radius, radius), mode="reflect")
    rows = F.conv2d(padded, taps.view(1, 1, -1, 1))
    return F.conv2d(rows, taps.view(1, 1, 1, -1))


def mirrored_gaussian_matrix(n: int, sigma: float) -> Tensor:
    """Return the filter of a line as a matrix [n, n], float64; n is above 3 sigma."""
    taps = _taps(sigma)
    radius = len(taps) // 2
    source = (torch.arange(n)[:, None] + torch.arange(-radius, radius + 1)).abs()
    source = torch.where(source >= n, 2 * (n - 1) - source, source)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    return matrix.scatter_add_(1, source, taps.expand(n, -1).contiguous())


def _taps(sigma: float) -> Tensor:
    """Return the weights of the filter, float64, which sum to 1."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return taps / taps.sum()
