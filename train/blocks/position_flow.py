"""Conditional normalising flows over the feature vector of one position, as they are trained.

A flow is FrEIA's (Ardizzone et al., "Framework for easily invertible architectures"): all-in-one
blocks with a fixed random rotation of the channels, whose sub-networks also read a code of the
position. `flawline.train.blocks.fused_position_flow` holds the form that is exported.
"""

from __future__ import annotations

import math

import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn

from flawline.train.blocks.flow import initialise_layer

# Bound of a coupling's log-scale in CFLOW-AD's code.
LOG_SCALE_CLAMP = 1.9
# Channels of the position code: sines and cosines of half as many frequencies per axis.
CODE_CHANNELS = 128
LARGEST_PERIOD = 1e4  # over 2 pi, in positions
# Sub-networks have so many hidden values per input.
HIDDEN_RATIO = 2
LOG_NORMAL = -0.5 * math.log(2 * math.pi)  # log-density of a standard normal at 0


def build_position_flow(channels: int, blocks: int) -> SequenceINN:
    """Build a flow over vectors [n, channels] with conditions [n, CODE_CHANNELS].

    It is called as `flow(vectors, [conditions])` and returns latents [n, channels] and
    log-determinants [n]. Call `initialise_position_flow` before training.
    """
    flow = SequenceINN(channels)
    for _ in range(blocks):
        # FrEIA would draw the rotation with `permute_soft`, as a product of so many reflections as
        # there are channels, which takes minutes. The initialisation draws it instead.
        flow.append(
            AllInOneBlock,
            cond=0,
            cond_shape=(CODE_CHANNELS,),
            subnet_constructor=LinearSubnetwork,
            affine_clamping=LOG_SCALE_CLAMP,
            permute_soft=False,
        )
    return flow


class LinearSubnetwork(nn.Module):
    """Predicts log-scale and shift of a coupling: two linear layers with a ReLU between them."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.first = nn.Linear(c_in, HIDDEN_RATIO * c_in)
        self.last = nn.Linear(HIDDEN_RATIO * c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, c_in], the passive half and then the code, to the prediction [n, c_out]."""
        prediction: Tensor = self.last(torch.relu(self.first(x)))
        return prediction


@torch.no_grad()
def initialise_position_flow(flow: SequenceINN, generator: torch.Generator) -> None:
    """Draw the rotations and the weights of the sub-networks from `generator`.

    The weights get the distribution of torch's default initialisation. The last block keeps the
    order of its channels: a rotation does not change the likelihood of a latent, and one that is
    rounded to float32 would change it a little.
    """
    blocks = list(flow.module_list)
    for block in blocks:
        rotation = torch.eye(block.in_channels, dtype=torch.float64)
        if block is not blocks[-1]:
            rotation = _draw_rotation(block.in_channels, generator)
        block.w_perm.copy_(rotation)
        block.w_perm_inv.copy_(rotation.T)
        initialise_layer(block.subnet.first, generator)
        initialise_layer(block.subnet.last, generator)


def _draw_rotation(channels: int, generator: torch.Generator) -> Tensor:
    """Return a rotation [channels, channels], float64, uniform over all rotations."""
    normal = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    basis, triangle = torch.linalg.qr(normal)
    # Without the signs, the distribution would depend on the algorithm of the decomposition.
    basis = basis * triangle.diagonal().sign()
    if torch.linalg.slogdet(basis)[0] < 0:
        basis[:, 0] = -basis[:, 0]
    rotation: Tensor = basis
    return rotation


def position_code_2d(height: int, width: int) -> Tensor:
    """Return the code of every position of a grid: [CODE_CHANNELS, height, width], float32.

    The first half of the channels encodes the column and the second half the row: sine and cosine
    in turns, with frequencies that fall from 1 to almost 1 / LARGEST_PERIOD.
    """
    code = torch.cat(
        [
            _line_code(width)[:, None, :].expand(-1, height, -1),
            _line_code(height)[:, :, None].expand(-1, -1, width),
        ]
    )
    return code.float().contiguous()


def _line_code(length: int) -> Tensor:
    """Return the code of every place of a line: [CODE_CHANNELS / 2, length], float64."""
    channels = CODE_CHANNELS // 2
    exponents = torch.arange(0, channels, 2, dtype=torch.float64) / channels
    frequencies = LARGEST_PERIOD**-exponents
    angles = frequencies[:, None] * torch.arange(length, dtype=torch.float64)
    return torch.stack([angles.sin(), angles.cos()], 1).flatten(0, 1)


def mean_log_likelihood(z: Tensor, log_determinant: Tensor) -> Tensor:
    """Return the log-likelihood per channel [n], in nats, of latents z [n, C].

    log_determinant: [n]. The latents are standard normal.
    """
    channels = z.shape[1]
    total = channels * LOG_NORMAL - 0.5 * z.square().sum(1) + log_determinant
    return total / channels


def position_likelihoods(flow: SequenceINN, level: Tensor, code: Tensor) -> Tensor:
    """Return the log-likelihood per channel [N, 1, h, w], in nats, of a level [N, C, h, w].

    code: [CODE_CHANNELS, h, w]. Every position is a vector of its own.
    """
    n, channels, height, width = level.shape
    vectors = level.permute(0, 2, 3, 1).reshape(-1, channels)
    conditions = code.flatten(1).T.repeat(n, 1)
    z, log_determinant = flow(vectors, [conditions])
    return mean_log_likelihood(z, log_determinant).view(n, 1, height, width)
