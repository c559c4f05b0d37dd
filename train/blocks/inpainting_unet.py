"""The U-net of RIAD, which completes images of which parts are hidden."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Both sides of an input are multiples of this: halved four times.
UNIT = 16
# Channels of the grids, the finest first, as multiples of the width.
WIDTHS = (1, 2, 4, 8, 8)


class _Convolutions(nn.Module):
    """Two convolutions, each with BatchNorm and ReLU; the first one may halve the grid."""

    def __init__(self, before: int, after: int, halve: bool) -> None:
        super().__init__()
        if halve:
            self.conv1 = nn.Conv2d(before, after, 4, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


class InpaintingUNet(nn.Module):
    """Images [N, 3, H, W] from -1 to 1, 0 where hidden, to [N, 3, H, W] before the last tanh.

    `width` channels on the finest grid. A transposed convolution doubles each grid, and the grid of
    that size on the way down is its second input. After a public re-implementation
    (taikiinoue45/RIAD), whose width is 64.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [factor * width for factor in WIDTHS]
        self.first = _Convolutions(3, width, False)
        self.down = nn.ModuleList()
        self.doubled = nn.ModuleList()
        self.up = nn.ModuleList()
        for before, after in pairwise(widths):
            self.down.append(_Convolutions(before, after, True))
        for before, after in pairwise(reversed(widths)):
            self.doubled.append(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1))
            self.up.append(_Convolutions(2 * after, after, False))
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        levels = []
        for block in self.down:
            levels.append(x)
            x = block(x)
        for double, block in zip(self.doubled, self.up, strict=True):
            x = block(torch.cat([double(x), levels.pop()], 1))
        logits: Tensor = self.last(x)
        return logits
