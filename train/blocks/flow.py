"""Normalising flows of affine couplings on feature maps, as they are trained.

A flow is FrEIA's (Ardizzone et al., "Framework for easily invertible architectures"): a sequence of
all-in-one blocks, each of which is an affine coupling, a global affine and a fixed random
permutation of the channels. `flow_forward` evaluates it for training.
`flawline.train.blocks.fused_flow` holds the same function in the form that is exported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from flawline.train.loop import half_precision

# Bound of a coupling's log-scale: a coupling stretches a value by at most e^2.
LOG_SCALE_CLAMP = 2.0
# FrEIA multiplies the prediction of a sub-network by this factor.
PREDICTION_SCALE = 0.1
# Not in the papers: hidden values of sub-networks are clamped to this. Good images stay below 10,
# but every coupling stretches a defect further; without the clamp it overflows FP16 (65504) after a
# few couplings and the score becomes NaN.
HIDDEN_CLAMP = 50.0
# For the same reason, sub-networks read latents up to this. Those of good images stay below 100.
LATENT_CLAMP = 1e4


class Subnetwork(Protocol):
    """A module that predicts log-scale and shift of a coupling from its passive half.

    Its first and its last layer are convolutions: the exported form folds the constants of the
    neighbouring layers into them.
    """

    first: nn.Conv2d
    last: nn.Conv2d

    def __call__(self, x: Tensor) -> Tensor:
        """Map [N, c_in, h, w] to the prediction [N, c_out, h, w]."""

    def fused_body(self) -> nn.Module:
        """Return everything between the first and the last layer, in the form that is exported."""


def build_flow(
    channels: int,
    size: tuple[int, int],
    blocks: int,
    subnetwork: Callable[[int, int, int], Subnetwork],
) -> SequenceINN:
    """Build a flow over [N, channels, *size].

    `subnetwork(number, c_in, c_out)` builds the sub-network of one block. FrEIA draws permutations
    and weights from the global random generators: call `initialise_flow` before training.
    """
    flow = SequenceINN(channels, *size)
    for number in range(blocks):
        flow.append(
            AllInOneBlock,
            subnet_constructor=partial(subnetwork, number),
            affine_clamping=LOG_SCALE_CLAMP,
            permute_soft=False,
        )
    return flow


@torch.no_grad()
def initialise_flow(flow: SequenceINN, generator: torch.Generator) -> None:
    """Draw the permutations and the weights of the sub-networks from `generator`.

    The weights get the distribution of torch's default initialisation.
    """
    for block in flow.module_list:
        order = torch.randperm(block.in_channels, generator=generator)
        matrix = torch.eye(block.in_channels)[order][..., None, None]
        block.w_perm.copy_(matrix)
        block.w_perm_inv.copy_(matrix.transpose(0, 1))
        for layer in block.subnet.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                initialise_layer(layer, generator)


@torch.no_grad()
def initialise_layer(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    """Draw weight and bias of a layer as torch's default initialisation does."""
    # The generator is on the CPU, so the tensors that it fills must be there too.
    drawn = torch.empty_like(layer.weight, device="cpu")
    nn.init.kaiming_uniform_(drawn, math.sqrt(5), generator=generator)
    if is_parametrized(layer):
        # The weight is computed from two parameters; the assignment sets those.
        layer.weight = drawn.to(layer.weight.device)
    else:
        layer.weight.copy_(drawn)
    if layer.bias is not None:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        drawn = torch.empty_like(layer.bias, device="cpu")
        layer.bias.copy_(nn.init.uniform_(drawn, -bound, bound, generator=generator))


def permutation(block: AllInOneBlock) -> Tensor:
    """Return the channels of a block in the order in which it passes them on: int64 [C]."""
    order: Tensor = block.w_perm.flatten(1).argmax(1)
    return order


def flow_forward(flow: SequenceINN, x: Tensor, autocast: bool = False) -> tuple[Tensor, Tensor]:
    """Compute the latent [N, C, h, w] and the log-determinant [N] of x [N, C, h, w].

    The result is that of FrEIA's own forward, which permutes with a dense C x C convolution instead
    of an index. With `autocast` the sub-networks run in bfloat16 on devices that compute it
    natively; the latent keeps the type of `x`.
    """
    positions = x.shape[2] * x.shape[3]
    log_determinant = x.new_zeros(len(x))
    for block in flow.module_list:
        passive, active = torch.split(x, block.splits, 1)
        with subnetwork_precision(x.device, autocast):
            prediction = block.subnet(passive)
        prediction = PREDICTION_SCALE * prediction.to(x.dtype)
        log_scale, shift = prediction.chunk(2, 1)
        log_scale = block.clamp * torch.tanh(log_scale)
        stretched = active * torch.exp(log_scale) + shift
        global_scale = block.global_scale_activation(block.global_scale)
        x = torch.cat([passive, stretched], 1) * global_scale + block.global_offset
        x = x[:, permutation(block)]
        log_determinant = log_determinant + log_scale.sum((1, 2, 3))
        log_determinant = log_determinant + positions * global_scale.log().sum()
    return x, log_determinant


def subnetwork_precision(device: torch.device, autocast: bool) -> AbstractContextManager[Any]:
    """Return the context of a sub-network: bfloat16 with `autocast`, see `half_precision`."""
    if autocast:
        return half_precision(device)
    return nullcontext()


def latent_nll(z: Tensor, log_determinant: Tensor) -> Tensor:
    """Return the negative log-likelihood [N] of latents under a standard normal, in nats.

    z: [N, C, h, w]; log_determinant: [N]. The sum is over all dimensions and includes the constant.
    """
    per_dimension = 0.5 * z.square() + 0.5 * math.log(2 * math.pi)
    return per_dimension.sum((1, 2, 3)) - log_determinant
