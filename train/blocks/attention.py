"""The sub-network of SSNF's couplings: a convolution and a self-attention.

Chiu and Lai (CVPR workshops 2023; see `flawline.train.methods.ssnf`), with the constants of the
authors' code, in the literal form and in the form that is exported.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from flawline.train import TrainError
from flawline.train.blocks.flow import HIDDEN_CLAMP, LATENT_CLAMP


class Dropout(NamedTuple):
    """How a sub-network drops out in training: the rate, and what its attention drops.

    The attention drops single weights, or with `values` the values of whole positions in a head,
    which are the same for all queries. The latter halves the time of a step on a CPU, where torch's
    fused attention has no dropout of weights.
    """

    rate: float
    values: bool = False


def hidden_channels(wanted: int, channels: int, heads: int) -> int:
    """Return how many channels a sub-network of features with so many channels has inside.

    That is `wanted`, or, where it is more than half of the channels, the largest multiple of twice
    the heads up to that half.
    """
    half = channels // 2
    if wanted <= half:
        return wanted
    return half - half % (2 * heads)


class AttentionSubnetwork(nn.Module):
    """Predicts log-scale and shift of a coupling: [N, c_in, h, w] to [N, c_out, h, w].

    Between the two 1x1 convolutions, a 3x3 convolution and a self-attention each have a residual.
    `grid` is (h, w); `hidden`, the number of channels inside, is a multiple of twice the heads, or
    TrainError is raised.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        hidden: int,
        heads: int,
        dropout: Dropout,
        grid: tuple[int, int],
    ) -> None:
        super().__init__()
        if hidden % (2 * heads):
            raise TrainError(f"{hidden} hidden channels are no multiple of twice the {heads} heads")
        self.first = nn.Conv2d(c_in, hidden, 1)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.dropout = nn.Dropout2d(dropout.rate)
        self.attention = Attention(hidden, heads, dropout, grid)
        self.last = nn.Conv2d(hidden, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.clamp(-LATENT_CLAMP, LATENT_CLAMP))
        x = x.clamp(-HIDDEN_CLAMP, HIDDEN_CLAMP)
        x = x + self.dropout(self.conv(x))
        x = x + self.attention(x)
        prediction: Tensor = self.last(x)
        return prediction

    def fused_body(self) -> nn.Module:
        return _FusedBody(self)


class Attention(nn.Module):
    """Multi-head self-attention over the positions of [N, C, h, w], row by row.

    A position code is added inside the branch, and the result of the heads is not projected. `grid`
    is (h, w). `dropout` applies in training mode only.
    """

    code: Tensor

    def __init__(self, channels: int, heads: int, dropout: Dropout, grid: tuple[int, int]) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.grid = grid
        self.register_buffer("code", position_code(grid[0] * grid[1], channels), persistent=False)
        self.project = weight_norm(nn.Linear(channels, 3 * channels, bias=False), dim=0)

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2) + self.code.to(x.dtype)  # [N, h * w, C]
        key, value, query = self.project(tokens).split(channels, -1)
        values = self._per_head(value)
        rate = self.dropout.rate if self.training else 0.0
        if self.training and self.dropout.values:
            values = values * F.dropout(values.new_ones(*values.shape[:3], 1), rate)
            rate = 0.0
        mixed = F.scaled_dot_product_attention(
            self._per_head(query), self._per_head(key), values, dropout_p=rate
        )
        return mixed.transpose(2, 3).reshape(n, channels, height, width)

    def _per_head(self, tokens: Tensor) -> Tensor:
        """[N, positions, C] to [N, heads, positions, C / heads]."""
        n, positions, channels = tokens.shape
        return tokens.view(n, positions, self.heads, channels // self.heads).transpose(1, 2)


def position_code(length: int, channels: int) -> Tensor:
    """Return a sinusoidal position code [length, channels]: all sines, then all cosines.

    The wavelengths grow geometrically from 2 pi to 10,000 times that.
    """
    half = channels // 2
    step = math.log(1e4) / max(half - 1, 1)
    frequency = torch.exp(-torch.arange(half, dtype=torch.float64) * step)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    code = torch.cat([angle.sin(), angle.cos()], 1)
    return code.to(torch.get_default_dtype())


class _FusedBody(nn.Module):
    """Convolution and attention of a sub-network for export: [N, hidden, h, w] to the same.

    - The residual of the convolution is 1 on the centre tap of its kernel.
    - The position code is a constant in the layout of the map.
    - Query, key and value are three matrix products instead of one and a split, and each comes out
      in the layout that the next product reads.
    """

    code: Tensor
    query: Tensor
    key: Tensor
    value: Tensor

    def __init__(self, subnetwork: AttentionSubnetwork) -> None:
        super().__init__()
        attention = subnetwork.attention
        hidden = subnetwork.conv.out_channels
        width = hidden // attention.heads
        self.conv = copy.deepcopy(subnetwork.conv)
        self.conv.weight.data[range(hidden), range(hidden), 1, 1] += 1
        self.register_buffer("code", attention.code.T.reshape(1, hidden, *attention.grid))
        projection = attention.project.weight.detach().view(3, attention.heads, width, hidden)
        key, value, query = projection
        query = query * width**-0.5
        self.register_buffer("query", query.transpose(1, 2).contiguous())
        self.register_buffer("key", key.contiguous())
        self.register_buffer("value", value.transpose(1, 2).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.clamp(-HIDDEN_CLAMP, HIDDEN_CLAMP))
        _, hidden, height, width = self.code.shape
        columns = (x + self.code).view(-1, 1, hidden, height * width)
        rows = columns.transpose(2, 3)
        similarity = (rows @ self.query) @ (self.key @ columns)
        weights = torch.softmax(similarity, -1)
        mixed = weights @ (rows @ self.value)
        mixed = mixed.transpose(2, 3).reshape(-1, hidden, height, width)
        return x + mixed
