"""The sub-network of SSNF's couplings: a convolution and a self-attention, both with residuals, between two gates.

Chiu and Lai (2022; see train.ssnf), with the constants of the authors' code. Its literal form, and the one exported.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from flawline.train.blocks.flow import SATURATION


class SubNet(nn.Module):
    """Scale and shift of a coupling: a gate, a convolution and an attention, both with residuals, a gate."""

    def __init__(
        self, c_in: int, c_out: int, hidden: int, heads: int, dropout: float, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(c_in, hidden, 1)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.dropout = nn.Dropout2d(dropout)
        self.attention = Attention(hidden, heads, dropout, grid)
        self.last = nn.Conv2d(hidden, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).clamp(-SATURATION, SATURATION)
        x = x + self.dropout(self.conv(x))
        x = x + self.attention(x)
        predicted: Tensor = self.last(x)
        return predicted

    def fused_middle(self) -> nn.Module:
        return _Middle(self)


class Attention(nn.Module):
    """Self-attention over the positions of [N, C, h, w], in the order of rows, without a projection of its result."""

    code: Tensor

    def __init__(self, channels: int, heads: int, dropout: float, grid: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.dropout, self.grid = heads, dropout, grid
        self.register_buffer("code", position_code(grid[0] * grid[1], channels), persistent=False)
        self.project = weight_norm(nn.Linear(channels, 3 * channels, bias=False), dim=0)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = self.project(x.flatten(2).transpose(1, 2) + self.code.to(x.dtype))
        key, value, query = (
            t.view(n, h * w, self.heads, c // self.heads).transpose(1, 2)
            for t in tokens.split(c, -1)
        )
        dropped = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropped)
        return mixed.transpose(2, 3).reshape(n, c, h, w)


def position_code(length: int, channels: int) -> Tensor:
    """Sines, then cosines, of the index times falling frequencies: [length, channels]."""
    half = channels // 2
    frequency = torch.exp(
        -torch.arange(half, dtype=torch.float64) * (math.log(1e4) / max(half - 1, 1))
    )
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1).to(torch.get_default_dtype())


class _Middle(nn.Module):
    """Convolution and attention of a sub-network, their constants folded: the residual of the convolution is its
    centre tap, the code is added once, and nothing is split: query, key and value come from a product each, in the
    layout that the next one reads."""

    code: Tensor
    query: Tensor
    key: Tensor
    value: Tensor

    def __init__(self, net: SubNet) -> None:
        super().__init__()
        attention, hidden = net.attention, net.conv.out_channels
        heads, width = attention.heads, hidden // attention.heads
        self.conv = copy.deepcopy(net.conv)
        self.conv.weight.data[range(hidden), range(hidden), 1, 1] += 1
        self.register_buffer("code", attention.code.T.reshape(1, hidden, *attention.grid))
        key, value, query = (
            w.view(heads, width, hidden) for w in attention.project.weight.detach().split(hidden)
        )
        self.register_buffer("query", (query * width**-0.5).transpose(1, 2).contiguous())
        self.register_buffer("key", key.contiguous())
        self.register_buffer("value", value.transpose(1, 2).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.clamp(-SATURATION, SATURATION))
        _, hidden, h, w = self.code.shape
        columns = (x + self.code).view(-1, 1, hidden, h * w)
        rows = columns.transpose(2, 3)
        weights = torch.softmax((rows @ self.query) @ (self.key @ columns), -1)
        mixed = (weights @ (rows @ self.value)).transpose(2, 3)
        attended: Tensor = x + mixed.reshape(-1, hidden, h, w)
        return attended
