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
    """A flow for export: [N, D] to a latent [N, D] whose dimensions keep the order of the input.

    No value is moved: every half block reads and writes all dimensions, with zero weights for those
    that it does not touch. The constants of the soft clamp are in the weights of the log-scale.

    Pass a float64 flow.
    """

    def __init__(self, flow: VectorFlow) -> None:
        super().__init__()
        self.half_blocks = nn.ModuleList()
        # For each dimension of the current block: which one of the input it is.
        source = torch.arange(flow.orders.shape[1], device=flow.orders.device)
        for order, from_second, from_first in zip(
            flow.orders, flow.from_second, flow.from_first, strict=True
        ):
            source = source[order]
            first, second = torch.split(source, flow.splits)
            self.half_blocks.append(_HalfBlock(from_second, reads=second, writes=first))
            self.half_blocks.append(_HalfBlock(from_first, reads=first, writes=second))

    def forward(self, x: Tensor) -> Tensor:
        x = x.clamp(-STATE_CLAMP, STATE_CLAMP)
        for half_block in self.half_blocks:
            x = half_block(x)
        return x


class _HalfBlock(nn.Module):
    """One `DenseSubnetwork` and the affine map that it predicts, on all dimensions [N, D].

    reads, writes: int64, the dimensions that the sub-network reads and transforms.
    """

    def __init__(self, subnetwork: Any, reads: Tensor, writes: Tensor) -> None:
        super().__init__()
        dimensions = len(reads) + len(writes)
        weight = subnetwork.first.weight.detach()
        columns = weight.new_zeros(len(weight), dimensions).index_copy_(1, reads, weight)
        self.first = _linear(columns, subnetwork.first.bias.detach())
        self.inner = subnetwork.inner
        scale_weight, shift_weight = subnetwork.last.weight.detach().chunk(2)
        scale_bias, shift_bias = subnetwork.last.bias.detach().chunk(2)
        self.log_scale = _linear(
            _rows(scale_weight / SOFT_CLAMP, writes, dimensions),
            _rows(scale_bias / SOFT_CLAMP, writes, dimensions),
        )
        self.shift = _linear(
            _rows(shift_weight, writes, dimensions), _rows(shift_bias, writes, dimensions)
        )
        self.affine = fp32(_Affine())

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).clamp(0, HIDDEN_CLAMP)
        for layer in self.inner:
            hidden = layer(hidden).clamp(0, HIDDEN_CLAMP)
        stretched: Tensor = self.affine(x, self.log_scale(hidden), self.shift(hidden))
        return stretched


class _Affine(nn.Module):
    """x e^s + t of [N, D], with s softly clamped and the result clamped."""

    def forward(self, x: Tensor, log_scale: Tensor, shift: Tensor) -> Tensor:
        return _stretched(x, LOG_SCALE_FACTOR * torch.atan(log_scale), shift)


def _rows(values: Tensor, places: Tensor, count: int) -> Tensor:
    """Return `count` rows: those of `values` at `places`, else zeros."""
    return values.new_zeros(count, *values.shape[1:]).index_copy_(0, places, values)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.weight.data = weight
    layer.bias.data = bias
    return layer
