"""The flow of CS-Flow in the form that is exported: without permutations and log-determinants.

Every rewrite is algebra on the constants of a trained flow (see
`flawline.train.blocks.cross_scale_flow`): the function stays the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flawline.train.blocks.cross_scale_flow import (
    ATAN_FACTOR,
    CLAMP,
    LATENT_LIMIT,
    SCALES,
    CrossConvolutions,
    CrossScaleBlock,
    CrossScaleFlow,
    activated,
    upsampled_by_two,
)
from flawline.train.blocks.flow_scores import MeanEnergy
from flawline.train.blocks.fused import fp32

# The channels of a scale: all of them at first, later the two halves of a block.
State = tuple[Tensor, ...]


class FusedCrossScaleFlow(nn.Module):
    """A flow for export: features [N, C, h, w] of each scale to their mean energies [N, 1, h, w].

    The features are standardised by one depthwise 1x1 convolution, and a permutation gathers each
    half. In a sub-network, the convolutions of a scale itself and of the upsampled coarser scale
    are one convolution of both; the gains and the divisor of the arc tangent are in the weights,
    and all biases in one. Energies are means over the channels of z^2 / 2.

    Pass a float64 flow. mean, std: [scales, C] of the features.
    """

    def __init__(self, flow: CrossScaleFlow, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.standardise = nn.ModuleList()
        for mean_of_scale, std_of_scale in zip(mean, std, strict=True):
            self.standardise.append(_standardisation(mean_of_scale, std_of_scale))
        self.blocks = nn.ModuleList()
        for block in flow.blocks:
            assert isinstance(block, CrossScaleBlock)
            self.blocks.append(_FusedBlock(block))
        # One module per scale, because the exporter gives other names to those that are called
        # again, which are then in no FP32 island.
        self.energies = nn.ModuleList()
        for _ in range(SCALES):
            self.energies.append(fp32(_EnergyOfHalves(mean.shape[1])))

    def forward(self, scales: Sequence[Tensor]) -> list[Tensor]:
        state: list[State] = []
        for scale, standardise in zip(scales, self.standardise, strict=True):
            state.append((standardise(scale),))
        for block in self.blocks:
            state = block(state)
        results = []
        for halves, energy in zip(state, self.energies, strict=True):
            results.append(energy(*halves))
        return results


class _FusedBlock(nn.Module):
    """A block of the flow: reads the state of each scale and returns its two halves."""

    def __init__(self, block: CrossScaleBlock) -> None:
        super().__init__()
        self.permutations = nn.ModuleList()
        for order in block.orders:
            self.permutations.append(_Permutation(order, block.splits))
        self.to_first = _FusedHalf(block.to_first)
        self.to_second = _FusedHalf(block.to_second)

    def forward(self, state: Sequence[State]) -> list[State]:
        firsts = []
        seconds = []
        for halves, permutation in zip(state, self.permutations, strict=True):
            first, second = permutation(*halves)
            firsts.append(first)
            seconds.append(second)
        firsts = self.to_first(firsts, seconds)
        seconds = self.to_second(seconds, firsts)
        return list(zip(firsts, seconds, strict=True))


class _Permutation(nn.Module):
    """Permutes the channels of a scale and splits them in two halves.

    Products with a matrix would round the latent in engines that compute convolutions in BF16.

    order: int64 [C].
    """

    first: Tensor
    second: Tensor

    def __init__(self, order: Tensor, splits: list[int]) -> None:
        super().__init__()
        first, second = torch.split(order, splits)
        self.register_buffer("first", first.clone())
        self.register_buffer("second", second.clone())

    def forward(self, *halves: Tensor) -> tuple[Tensor, Tensor]:
        joined = halves[0] if len(halves) == 1 else torch.cat(halves, 1)
        return joined.index_select(1, self.first), joined.index_select(1, self.second)


class _FusedHalf(nn.Module):
    """Transforms one half of the channels of each scale by what it predicts from the other."""

    def __init__(self, subnetwork: CrossConvolutions) -> None:
        super().__init__()
        self.first = subnetwork.first
        self.predictions = nn.ModuleList()
        self.affines = nn.ModuleList()
        for number in range(SCALES):
            self.predictions.append(_Prediction(subnetwork, number))
            self.affines.append(fp32(_Affine(subnetwork.c_out // 2)))

    def forward(self, active: Sequence[Tensor], passive: Sequence[Tensor]) -> list[Tensor]:
        hidden = []
        for x, first in zip(passive, self.first, strict=True):
            hidden.append(activated(first(x)))
        results = []
        for number, x in enumerate(active):
            own = hidden[number]
            if number + 1 < SCALES:
                own = torch.cat([own, upsampled_by_two(hidden[number + 1])], 1)
            finer = () if number == 0 else (hidden[number - 1],)
            prediction = self.predictions[number](own, *finer)
            results.append(self.affines[number](x, prediction))
        return results


class _Prediction(nn.Module):
    """The prediction for one scale: tangents of log-scales, then shifts.

    It reads the hidden channels of the scale, joined with the upsampled ones of the coarser scale,
    and those of the finer scale, where there are such scales.
    """

    def __init__(self, subnetwork: CrossConvolutions, number: int) -> None:
        super().__init__()
        gain = subnetwork.gains.detach()[number]
        factors = gain.repeat(subnetwork.c_out)
        factors[: subnetwork.c_out // 2] /= CLAMP
        kernels = factors[:, None, None, None]
        joined: list[Any] = [subnetwork.last[number]]
        added: list[Any] = []
        if number + 1 < SCALES:
            joined.append(subnetwork.from_coarser[number])
        if number > 0:
            added.append(subnetwork.from_finer[number - 1])
        weight = torch.cat([layer.weight.detach() for layer in joined], 1)
        bias = sum(layer.bias.detach() for layer in joined + added)
        self.own = _convolution(kernels * weight, factors * bias)
        self.finer: nn.Module | None = None
        if added:
            self.finer = _convolution(kernels * added[0].weight.detach(), None, stride=2)

    def forward(self, own: Tensor, finer: Tensor | None = None) -> Tensor:
        predicted: Tensor = self.own(own)
        if self.finer is not None:
            predicted = predicted + self.finer(finer)
        return predicted


class _Affine(nn.Module):
    """x e^s + t of [N, c, h, w], clamped afterwards, from the tangents of s and t, [N, 2c, h, w].

    channels: c.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor, prediction: Tensor) -> Tensor:
        tangent, shift = torch.split(prediction, self.channels, 1)
        log_scale = CLAMP * ATAN_FACTOR * torch.atan(tangent)
        return (x * torch.exp(log_scale) + shift).clamp(-LATENT_LIMIT, LATENT_LIMIT)


class _EnergyOfHalves(nn.Module):
    """The mean energy of the channels of both halves: twice [N, C / 2, h, w] to [N, 1, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.energy = MeanEnergy(torch.ones(channels, dtype=torch.float64))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        energy: Tensor = self.energy(torch.cat([first, second], 1))
        return energy


def _standardisation(mean: Tensor, std: Tensor) -> nn.Module:
    """Return (x - mean) / std of [N, C, h, w] as a depthwise 1x1 convolution; mean, std: [C].

    Features that are not standardised have a mean of 0 and a deviation of 1, and need none.
    """
    if not mean.any() and bool((std == 1).all()):
        return nn.Identity()
    channels = len(mean)
    layer = nn.Conv2d(channels, channels, 1, groups=channels)
    layer.weight.data = (1 / std)[:, None, None, None]
    assert layer.bias is not None
    layer.bias.data = -mean / std
    return fp32(layer)


def _convolution(weight: Tensor, bias: Tensor | None, stride: int = 1) -> nn.Conv2d:
    """Return a zero-padded convolution with this kernel [rows, columns, k, k], k odd."""
    rows, columns, kernel, _ = weight.shape
    layer = nn.Conv2d(columns, rows, kernel, stride, kernel // 2, bias=bias is not None)
    layer.weight.data = weight.contiguous()
    if layer.bias is not None and bias is not None:
        layer.bias.data = bias
    return layer
