"""Normalising flows of affine couplings on feature maps, and the same flows without their bookkeeping.

The flow that is trained is FrEIA's (Ardizzone et al., "Framework for easily invertible architectures"): all-in-one
blocks of a coupling, a global affine and a fixed random permutation. `latent` is what training runs, with indices in
place of the dense permutation; `FusedFlow` is what is exported, where no permutation is left at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from flawline.train.blocks import fused as fuse
from flawline.train.blocks.fused import fp32
from flawline.train.loop import half_precision

CLAMP = 2.0  # of the log-scale: a coupling stretches a value by at most e^2
# Ours: where a sub-network's hidden values end. Good images stay below 10, but defects are stretched from coupling to
# coupling, and beyond 65504 FP16 knows no number: the verdict on the worst parts would be NaN.
SATURATION = 50.0
LARGEST_READ = 3e4  # of a latent, by a sub-network in FP16
FORMS = ("padded", "gathered", "multiplied")


class Subnet(Protocol):
    """What predicts scale and shift: its first and last layer are convolutions, which take in what is rewritten."""

    first: nn.Conv2d
    last: nn.Conv2d

    def fused_middle(self) -> nn.Module:
        """All between the two, for export."""


def build_flow(
    channels: int, size: tuple[int, int], blocks: int, subnet: Callable[[int, int, int], Any]
) -> Any:
    """A flow of `blocks` over [N, channels, *size]; `subnet(number, channels in, channels out)` makes each coupling's.

    How values are initialised is `initialise`'s business: FrEIA draws from the global generators.
    """
    flow = SequenceINN(channels, *size)
    for number in range(blocks):
        flow.append(
            AllInOneBlock,
            subnet_constructor=lambda i, o, number=number: subnet(number, i, o),
            affine_clamping=CLAMP,
            permute_soft=False,
        )
    return flow


@torch.no_grad()
def initialise(flow: Any, generator: torch.Generator) -> None:
    """Permutations and the weights of the sub-networks, as torch's default initialisation draws them."""
    for block in flow.module_list:
        order = torch.randperm(block.in_channels, generator=generator)
        matrix = torch.eye(block.in_channels)[order][..., None, None]
        block.w_perm.copy_(matrix)
        block.w_perm_inv.copy_(matrix.transpose(0, 1))
        for layer in block.subnet.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                blank = torch.empty_like(layer.weight, device="cpu")  # where the generator is
                drawn = nn.init.kaiming_uniform_(blank, math.sqrt(5), generator=generator)
                if is_parametrized(layer):
                    layer.weight = drawn.to(
                        layer.weight.device
                    )  # what is read there is a product of two others
                else:
                    layer.weight.copy_(drawn)
                if layer.bias is not None:
                    bound = 1 / math.sqrt(layer.weight[0].numel())
                    blank = torch.empty_like(layer.bias, device="cpu")
                    layer.bias.copy_(nn.init.uniform_(blank, -bound, bound, generator=generator))


def permutation(block: Any) -> Tensor:
    """Which channel comes where after the block, [C]."""
    order: Tensor = block.w_perm.flatten(1).argmax(1)
    return order


def latent(flow: Any, x: Tensor, autocast: bool = False) -> tuple[Tensor, Tensor]:
    """FrEIA's forward with its permutations executed as an index: z [N, C, h, w] and log-determinant [N].

    With `autocast` the sub-networks run in bfloat16 where it is fast; what they scale stays in the type of `x`.
    """
    positions = x.shape[2] * x.shape[3]
    log_det = x.new_zeros(len(x))
    for block in flow.module_list:
        passive, active = torch.split(x, block.splits, 1)
        with half_precision(x.device) if autocast else nullcontext():
            a = block.subnet(passive)
        log_scale, shift = (0.1 * a.to(x.dtype)).chunk(2, 1)
        log_scale = block.clamp * torch.tanh(log_scale)
        d = block.global_scale_activation(block.global_scale)
        both = (
            torch.cat([passive, active * torch.exp(log_scale) + shift], 1) * d + block.global_offset
        )
        x = both[:, permutation(block)]
        log_det = log_det + log_scale.sum((1, 2, 3)) + positions * d.log().sum()
    return x, log_det


def negative_log_likelihood(z: Tensor, log_det: Tensor) -> Tensor:
    """Of each sample [N] under a standard normal z, in nats, the constant included: a sum over all dimensions."""
    return (0.5 * z.square() + 0.5 * math.log(2 * math.pi)).sum((1, 2, 3)) - log_det


class _Affine(nn.Module):
    """x e^s + t, the log-scale clamped softly."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return x * torch.exp(CLAMP * torch.tanh(s)) + t


class _Move(nn.Module):
    """The passive half [N, C, h, w] by its global offset."""

    offset: Tensor

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", offset[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset


class FusedFlow(nn.Module):
    """A flow without permutations, log-determinants and global affines: [N, C, h, w] to the latent [N, C, h, w].

    The global scale of every block is left out, and each following weight allows for it: `scale` [C] is what is missing
    in the end. A global offset is the bias of the shift. No last permutation is made, since what reads the latent takes
    means over channels; `scale` is in the order of the result.

    Three forms of one function. `padded` leaves channels where they are, and reads and writes all of them, with zero
    weights for those that a block does not touch: more arithmetic, and not one node that only moves data. The others
    keep two halves, and permute by gathering channels (`gathered`), or by a product with the permutation's matrix
    (`multiplied`), which adds the offset as well and, where gathering breaks an engine's layout, is faster.
    """

    scale: Tensor

    def __init__(self, flow: Any, form: str, divided: bool = False) -> None:
        """`divided` is FrEIA's clamp since August 2023, alpha tanh(a / alpha); the released 0.2 has alpha tanh(a)."""
        super().__init__()
        assert form in FORMS
        self.padded, self.splits = form == "padded", flow.module_list[0].splits
        couplings = []
        scale = torch.ones(sum(self.splits), dtype=torch.float64)
        position = torch.arange(len(scale))
        for number, block in enumerate(flow.module_list):
            last = number + 1 == len(flow.module_list)
            couplings.append(
                _Coupling(
                    block,
                    scale,
                    position,
                    "gathered" if last and not self.padded else form,
                    divided,
                )
            )
            scale[position] *= _global_scale(block)
            last_position, position = position, position[permutation(block)]
        self.couplings = nn.ModuleList(couplings)
        self.register_buffer("scale", scale if self.padded else scale[last_position])

    def forward(self, x: Tensor) -> Tensor:
        couplings: Any = self.couplings
        if self.padded:
            for coupling in couplings:
                x = coupling(x, x)
            return x
        passive, active = torch.split(x, self.splits, 1)
        for coupling in couplings[:-1]:
            passive, active = coupling.halves(coupling(passive, active))
        result: Tensor = couplings[-1](passive, active)
        return result


class _Coupling(nn.Module):
    """One block: of all channels, read and written; or of a passive and an active half, to both in one.

    `scale` [C] is what the input lacks and `position` [C] says where the block's channels are in it.
    """

    passive: Tensor
    active: Tensor

    def __init__(
        self, block: Any, scale: Tensor, position: Tensor, form: str, divided: bool
    ) -> None:
        super().__init__()
        self.padded = padded = form == "padded"
        passive, active = torch.split(position, block.splits)
        offset = torch.empty_like(scale)
        offset[position] = block.global_offset.detach().double().flatten() / _global_scale(block)
        offset /= scale
        subnet: Subnet = block.subnet
        first, last, first_bias, last_bias = (
            p.detach().double()  # type: ignore[union-attr]
            for p in (subnet.first.weight, subnet.last.weight, subnet.first.bias, subnet.last.bias)
        )
        first = first * scale[passive][:, None, None]
        # FrEIA scales what a sub-network predicts by 0.1.
        clamped = 0.1 / (CLAMP if divided else 1.0)
        log_scale, shift = last.chunk(2)
        log_scale_bias, shift_bias = last_bias.chunk(2)
        log_scale, log_scale_bias = clamped * log_scale, clamped * log_scale_bias
        shift = 0.1 * shift / scale[active][:, None, None, None]
        shift_bias = 0.1 * shift_bias / scale[active] + offset[active]
        self.move = fp32(_Move(offset[passive])) if form == "gathered" else None
        self.permute = None
        if padded:
            first = _spread(first, passive, len(scale), 1)
            log_scale, shift, log_scale_bias, shift_bias = (
                _spread(p, active, len(scale), 0)
                for p in (log_scale, shift, log_scale_bias, shift_bias)
            )
            shift_bias[passive] = offset[passive]
        following = torch.split(permutation(block), block.splits)
        self.splits = block.splits
        if form == "gathered":
            self.register_buffer("passive", following[0])
            self.register_buffer("active", following[1])
        elif form == "multiplied":
            matrix = torch.eye(len(scale), dtype=torch.float64)[permutation(block)]
            moved = torch.cat([offset[passive], torch.zeros(len(active), dtype=torch.float64)])
            self.permute = fp32(fuse.pointwise(matrix, matrix @ moved))
        self.first = _like(subnet.first, first, first_bias)
        self.middle = subnet.fused_middle()
        self.log_scale = _like(subnet.last, log_scale, log_scale_bias)
        self.shift = _like(subnet.last, shift, shift_bias)
        self.affine = fp32(_Affine())

    def forward(self, passive: Tensor, active: Tensor) -> Tensor:
        # Each island is a module that is called from here: the names of nodes follow the calls.
        h = self.middle(self.first(passive.clamp(-LARGEST_READ, LARGEST_READ)))
        stretched: Tensor = self.affine(active, self.log_scale(h), self.shift(h))
        if self.padded:
            return stretched
        x = torch.cat([passive if self.move is None else self.move(passive), stretched], 1)
        return x if self.permute is None else self.permute(x)

    def halves(self, x: Tensor) -> Any:
        """The next block's passive and active half of this one's result."""
        if self.permute is None:
            return x.index_select(1, self.passive), x.index_select(1, self.active)
        return torch.split(x, self.splits, 1)


def _global_scale(block: Any) -> Tensor:
    """Of every channel in the block's own order, [C] float64."""
    scale: Tensor = block.global_scale_activation(block.global_scale.detach().double())
    return scale.flatten()


def _spread(values: Tensor, places: Tensor, size: int, axis: int) -> Tensor:
    """`values` at `places` of an axis of `size`, and zeros elsewhere."""
    shape = list(values.shape)
    shape[axis] = size
    return values.new_zeros(shape).index_copy_(axis, places, values)


def _like(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution as `layer` is, with other weights and channels."""
    made = nn.Conv2d(
        weight.shape[1],
        weight.shape[0],
        layer.kernel_size,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        dtype=weight.dtype,
    )
    assert made.bias is not None
    made.weight.data = weight
    made.bias.data = bias
    return made


class Likelihood(nn.Module):
    """-mean exp(-z^2 / 2) / sqrt(2 pi) over the channels of a latent to be scaled: [N, C, h, w] to [N, 1, h, w]."""

    half_square: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("half_square", -0.5 * scale.square()[:, None, None])
        self.factor = -1 / (len(scale) * math.sqrt(2 * math.pi))

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x * x * self.half_square).sum(1, keepdim=True) * self.factor


class Energy(nn.Module):
    """mean z^2 / 2 over the channels of a latent to be scaled: [N, C, h, w] to [N, 1, h, w]."""

    weight: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", (scale.square() / (2 * len(scale)))[None, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x * x, self.weight)
