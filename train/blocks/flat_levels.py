"""Several feature maps of an image as one vector, the form in which they are stored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def flatten_levels(levels: Sequence[Tensor]) -> Tensor:
    """Join levels [N, C, h, w] to one vector per image, [N, values]."""
    return torch.cat([level.flatten(1) for level in levels], 1)


def unflatten_levels(
    flat: Tensor, channels: Sequence[int], grids: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Split [N, values] into the levels [N, C, h, w]; the inverse of `flatten_levels`."""
    levels = []
    start = 0
    for count, (height, width) in zip(channels, grids, strict=True):
        stop = start + count * height * width
        levels.append(flat[:, start:stop].view(-1, count, height, width))
        start = stop
    return levels
