"""The normalising flow of CS-Flow over several scales at once, as it is trained.

Rudolph et al., "Fully convolutional cross-scale-flows for image-based defect detection" (2022),
with the constants of the authors' code. Each scale has half the height and width of the one before.
A block permutes the channels of every scale and transforms both halves of them: the first one by
what a sub-network predicts from the second one, then the second one from the new first one. The
sub-networks exchange information between neighbouring scales.
`flawline.train.blocks.fused_cross_scale_flow` holds the same function in the form that is exported.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.train.blocks.flow import HIDDEN_CLAMP, initialise_layer, subnetwork_precision

SCALES = 3
LEAKY_SLOPE = 0.1
# A half of a block stretches a value by at most about e^3: its log-scale is
# CLAMP * ATAN_FACTOR * atan(prediction / CLAMP).
CLAMP = 3.0
ATAN_FACTOR = 0.636
# The latent is clamped to this after every half of a block. In the paper it is 1e6 after every
# block, which is infinite in FP16; good images stay below 10.
LATENT_LIMIT = 3e4


class CrossConvolutions(nn.Module):
    """Predicts [N, c_out, h, w] of each scale from [N, c_in, h, w] of the same and the next ones.

    A convolution with a leaky ReLU on each scale, then one on each scale whose result is added to
    those of the neighbouring scales: the coarser one upsampled before, the finer one with a stride
    of 2. A gain per scale, which is 0 at first, multiplies the sum. Unlike in the paper, the leaky
    ReLU saturates at HIDDEN_CLAMP in both directions.
    """

    def __init__(self, c_in: int, c_out: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.c_out = c_out

        def convolutions(count: int, read: int, written: int, stride: int = 1) -> nn.ModuleList:
            layers = nn.ModuleList()
            for _ in range(count):
                layers.append(nn.Conv2d(read, written, kernel, stride, kernel // 2))
            return layers

        self.first = convolutions(SCALES, c_in, hidden)
        self.last = convolutions(SCALES, hidden, c_out)
        self.from_coarser = convolutions(SCALES - 1, hidden, c_out)
        self.from_finer = convolutions(SCALES - 1, hidden, c_out, 2)
        self.gains = nn.Parameter(torch.zeros(SCALES))

    def forward(self, scales: Sequence[Tensor]) -> list[Tensor]:
        hidden = []
        for x, first in zip(scales, self.first, strict=True):
            hidden.append(activated(first(x)))
        predictions = []
        for number in range(SCALES):
            total = self.last[number](hidden[number])
            if number + 1 < SCALES:
                coarser = upsampled_by_two(hidden[number + 1])
                total = total + self.from_coarser[number](coarser)
            if number > 0:
                total = total + self.from_finer[number - 1](hidden[number - 1])
            predictions.append(total * self.gains[number])
        return predictions


def activated(x: Tensor) -> Tensor:
    """Return the leaky ReLU of x, clamped to HIDDEN_CLAMP."""
    return F.leaky_relu(x, LEAKY_SLOPE).clamp(-HIDDEN_CLAMP, HIDDEN_CLAMP)


def upsampled_by_two(x: Tensor) -> Tensor:
    """Resize [N, C, h, w] bilinearly to twice its height and width, with half-pixel centres."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class CrossScaleBlock(nn.Module):
    """A permutation of the channels of every scale and a coupling of their halves.

    number: of the block; as in the authors' code, it is the seed of the permutations.
    """

    orders: Tensor  # int64 [scales, C]

    def __init__(self, number: int, channels: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.splits = [channels // 2, channels - channels // 2]
        first, second = self.splits
        # What changes the first half, and what changes the second half.
        self.to_first = CrossConvolutions(second, 2 * first, hidden, kernel)
        self.to_second = CrossConvolutions(first, 2 * second, hidden, kernel)
        random = np.random.RandomState(number)
        orders = np.stack([random.permutation(channels) for _ in range(SCALES)])
        self.register_buffer("orders", torch.from_numpy(orders))

    def forward(
        self, scales: Sequence[Tensor], autocast: bool = False
    ) -> tuple[list[Tensor], Tensor]:
        """Transform [N, C, h, w] of each scale; return them and the log-determinant [N]."""
        firsts = []
        seconds = []
        for number, x in enumerate(scales):
            first, second = torch.split(x[:, self.orders[number]], self.splits, 1)
            firsts.append(first)
            seconds.append(second)
        firsts, by_first = _stretched(firsts, self._predict(self.to_first, seconds, autocast))
        seconds, by_second = _stretched(seconds, self._predict(self.to_second, firsts, autocast))
        joined = []
        for first, second in zip(firsts, seconds, strict=True):
            joined.append(torch.cat([first, second], 1))
        return joined, by_first + by_second

    def _predict(
        self, subnetwork: CrossConvolutions, passive: Sequence[Tensor], autocast: bool
    ) -> list[Tensor]:
        with subnetwork_precision(passive[0].device, autocast):
            predictions = subnetwork(passive)
        return [prediction.to(passive[0].dtype) for prediction in predictions]


def _stretched(
    active: Sequence[Tensor], predictions: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Apply log-scales and shifts to a half of each scale; return it and the log-determinant."""
    results = []
    log_determinant = active[0].new_zeros(active[0].shape[0])
    for x, prediction in zip(active, predictions, strict=True):
        log_scale, shift = prediction.chunk(2, 1)
        log_scale = CLAMP * ATAN_FACTOR * torch.atan(log_scale / CLAMP)
        stretched = x * torch.exp(log_scale) + shift
        results.append(stretched.clamp(-LATENT_LIMIT, LATENT_LIMIT))
        log_determinant = log_determinant + log_scale.sum((1, 2, 3))
    return results, log_determinant


class CrossScaleFlow(nn.Module):
    """The blocks of CS-Flow on three scales [N, C, h, w], [N, C, h/2, w/2], [N, C, h/4, w/4].

    kernels: size of the convolutions of each block. Call `initialise` before training.
    """

    def __init__(self, channels: int, hidden: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for number, kernel in enumerate(kernels):
            self.blocks.append(CrossScaleBlock(number, channels, hidden, kernel))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights as torch's default initialisation does, and set the gains to 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                initialise_layer(module, generator)
            elif isinstance(module, CrossConvolutions):
                module.gains.zero_()

    def forward(
        self, scales: Sequence[Tensor], autocast: bool = False
    ) -> tuple[list[Tensor], Tensor]:
        """Return the latent of each scale and the log-determinant [N].

        With `autocast` the sub-networks run in bfloat16 on devices that compute it natively; the
        latents keep the type of the scales.
        """
        latents = list(scales)
        log_determinant = latents[0].new_zeros(latents[0].shape[0])
        for block in self.blocks:
            latents, of_block = block(latents, autocast)
            log_determinant = log_determinant + of_block
        return latents, log_determinant
