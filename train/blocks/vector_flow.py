"""A normalising flow on vectors, as it is trained and in the form that is exported.

Rudolph et al., "Same same but DifferNet" (WACV 2021): each block permutes the dimensions, then
transforms the first half by what a network reads from the second, and the second half by what
another network reads from the transformed first. The log-scale is a soft clamp by the arc tangent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flawline.train.blocks.flow import HIDDEN_CLAMP, initialise_layer
from flawline.train.blocks.fused import fp32

# The log-scale is SOFT_CLAMP * 0.636 * atan(prediction / SOFT_CLAMP), so that a half block
# stretches a value by at most e^3.
SOFT_CLAMP = 3.0
LOG_SCALE_FACTOR = 0.636 * SOFT_CLAMP
# Values between half blocks are clamped to this. In the authors' code it is 1e6, which FP16 cannot
# represent; good images stay below 10.
STATE_CLAMP = 3e4
# Hidden layers of a sub-network between its first and its last layer.
INNER_LAYERS = 2


class DenseSubnetwork(nn.Module):
    """Predicts log-scales and shifts [N, 2 * c_out] from [N, c_in], with three hidden layers.

    Unlike in the paper, the ReLUs saturate at HIDDEN_CLAMP.
    """

    def __init__(self, c_in: int, hidden: int, c_out: int) -> None:
        super().__init__()
        self.first = nn.Linear(c_in, hidden)
        self.inner = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(INNER_LAYERS))
        self.last = nn.Linear(hidden, 2 * c_out)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.first(x).clamp(0, HIDDEN_CLAMP)
        for layer in self.inner:
            hidden = layer(hidden).clamp(0, HIDDEN_CLAMP)
        prediction, shift = self.last(hidden).chunk(2, 1)
        return LOG_SCALE_FACTOR * torch.atan(prediction / SOFT_CLAMP), shift


class VectorFlow(nn.Module):
    """A flow over vectors [N, dimensions]; its permutations are zero before `initialise`."""

    orders: Tensor  # int64 [blocks, dimensions]: the permutation before each block

    def __init__(self, dimensions: int, blocks: int, hidden: int) -> None:
        super().__init__()
        self.splits = [dimensions // 2, dimensions - dimensions // 2]
        self.register_buffer("orders", torch.zeros(blocks, dimensions, dtype=torch.int64))
        # For each block: the network that reads the second half, then that of the first.
        self.from_second = nn.ModuleList()
        self.from_first = nn.ModuleList()
        first, second = self.splits
        for _ in range(blocks):
            self.from_second.append(DenseSubnetwork(second, hidden, first))
            self.from_first.append(DenseSubnetwork(first, hidden, second))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw the permutations, and the weights as torch's default initialisation does."""
        for order in self.orders:
            order.copy_(torch.randperm(len(order), generator=generator))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                initialise_layer(layer, generator)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the latent [N, D] and the log-determinant [N] of vectors [N, D]."""
        log_determinant = x.new_zeros(len(x))
        x = x.clamp(-STATE_CLAMP, STATE_CLAMP)
        for order, from_second, from_first in zip(
            self.orders, self.from_second, self.from_first, strict=True
        ):
            first, second = torch.split(x[:, order], self.splits, 1)
            log_scale, shift = from_second(second)
            first = _stretched(first, log_scale, shift)
            log_determinant = log_determinant + log_scale.sum(1)
            log_scale, shift = from_first(first)
            second = _stretched(second, log_scale, shift)
            log_determinant = log_determinant + log_scale.sum(1)
            x = torch.cat([first, second], 1)
        return x, log_determinant


def _stretched(x: Tensor, log_scale: Tensor, shift: Tensor) -> Tensor:
    return (x * torch.exp(log_scale) + shift).clamp(-STATE_CLAMP, STATE_CLAMP)


class FusedVectorFlow(nn.Module):
    """A flow for export: [N, D] to the latent [N, D].

    A permutation gathers each half. Log-scales and shifts are one product, whose weights contain
    the divisor of the soft clamp. Blocks that read and write all dimensions, with zero weights for
    those that they do not touch, need no permutation, but twice the weights and the time.

    Pass a float64 flow.
    """

    def __init__(self, flow: VectorFlow) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for order, from_second, from_first in zip(
            flow.orders, flow.from_second, flow.from_first, strict=True
        ):
            self.blocks.append(_FusedBlock(order, flow.splits, from_second, from_first))

    def forward(self, x: Tensor) -> Tensor:
        x = x.clamp(-STATE_CLAMP, STATE_CLAMP)
        for block in self.blocks:
            x = block(x)
        return x


class _FusedBlock(nn.Module):
    """A block of the flow: [N, D] to [N, D].

    order: int64 [D]. The other arguments are those of the block: its `DenseSubnetwork`s, of which
    the first one changes the first half.
    """

    first: Tensor
    second: Tensor

    def __init__(
        self, order: Tensor, splits: list[int], from_second: nn.Module, from_first: nn.Module
    ) -> None:
        super().__init__()
        first, second = torch.split(order, splits)
        self.register_buffer("first", first.clone())
        self.register_buffer("second", second.clone())
        self.to_first = _FusedHalf(from_second)
        self.to_second = _FusedHalf(from_first)

    def forward(self, x: Tensor) -> Tensor:
        first = x.index_select(1, self.first)
        second = x.index_select(1, self.second)
        first = self.to_first(first, second)
        second = self.to_second(second, first)
        return torch.cat([first, second], 1)


class _FusedHalf(nn.Module):
    """Transforms one half of the dimensions by what it predicts from the other."""

    def __init__(self, subnetwork: Any) -> None:
        super().__init__()
        self.first = subnetwork.first
        self.inner = subnetwork.inner
        changed = subnetwork.last.out_features // 2
        self.last = _divided(subnetwork.last, changed)
        self.affine = fp32(_Affine(changed))

    def forward(self, active: Tensor, passive: Tensor) -> Tensor:
        hidden = self.first(passive).clamp(0, HIDDEN_CLAMP)
        for layer in self.inner:
            hidden = layer(hidden).clamp(0, HIDDEN_CLAMP)
        stretched: Tensor = self.affine(active, self.last(hidden))
        return stretched


class _Affine(nn.Module):
    """x e^s + t of [N, d], clamped afterwards, from the tangents of s and t, [N, 2d].

    dimensions: d.
    """

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions

    def forward(self, x: Tensor, prediction: Tensor) -> Tensor:
        tangent, shift = torch.split(prediction, self.dimensions, 1)
        return _stretched(x, LOG_SCALE_FACTOR * torch.atan(tangent), shift)


def _divided(layer: nn.Linear, rows: int) -> nn.Linear:
    """Return a linear layer whose first rows are divided by SOFT_CLAMP."""
    factors = torch.ones_like(layer.bias.detach())
    factors[:rows] /= SOFT_CLAMP
    divided = nn.Linear(layer.in_features, layer.out_features, dtype=layer.weight.dtype)
    divided.weight.data = factors[:, None] * layer.weight.detach()
    divided.bias.data = factors * layer.bias.detach()
    return divided
