"""Flows in the form that is exported: without permutations, log-determinants and global affines.

Every rewrite is algebra on the constants of a trained flow (see `flawline.train.blocks.flow`): the
function stays the same, and the graph loses most of its nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn

from flawline.train.blocks.flow import (
    LATENT_CLAMP,
    LOG_SCALE_CLAMP,
    PREDICTION_SCALE,
    permutation,
)
from flawline.train.blocks.fused import fp32, pointwise

FLOW_FORMS = ("padded", "gathered", "multiplied")


class FusedFlow(nn.Module):
    """A flow for export: [N, C, h, w] to an unscaled latent [N, C, h, w].

    The global scale of a block is left out and folded into the weights that follow; `scale` [C] is
    the factor by which the result is too small at the end. A global offset becomes part of the bias
    of the shift. The last permutation is left out, because the scores take means over the channels;
    `scale` is in the order of the result.

    There are three forms of the same function:

    - "padded": the channels stay where they are. Every coupling reads and writes all of them, with
      zero weights for those that it does not touch. More arithmetic, but no node that only moves
      data.
    - "gathered": the state is kept as two halves, and a permutation gathers channels.
    - "multiplied": two halves, and a permutation is a product with its matrix, which adds the
      offset too. This is faster where a gather breaks the memory layout of an engine.

    Pass a float64 flow: the folded constants are float64, everything else keeps the type of the
    flow.
    """

    scale: Tensor

    def __init__(self, flow: SequenceINN, form: str) -> None:
        super().__init__()
        if form not in FLOW_FORMS:
            raise ValueError(f"form {form!r} is unknown; known: {', '.join(FLOW_FORMS)}")
        blocks = list(flow.module_list)
        self.padded = form == "padded"
        self.splits = blocks[0].splits
        self.couplings = nn.ModuleList()
        # For each channel of the input: the factor that its value lacks so far.
        scale = torch.ones(blocks[0].in_channels, dtype=torch.float64)
        # For each channel of the current block: which channel of the input it is.
        source = torch.arange(blocks[0].in_channels)
        for number, block in enumerate(blocks):
            if number > 0:
                source = source[permutation(blocks[number - 1])]
            coupling_class = _coupling_class(form, is_last=number == len(blocks) - 1)
            self.couplings.append(coupling_class(_fold(block, scale, source)))
            scale[source] *= _global_scale(block)
        if not self.padded:
            scale = scale[source]
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.padded:
            for coupling in self.couplings:
                x = coupling(x)
            return x
        passive, active = torch.split(x, self.splits, 1)
        *inner, last = self.couplings
        for coupling in inner:
            passive, active = coupling(passive, active)
        latent: Tensor = last(passive, active)
        return latent


@dataclass(frozen=True)
class _FoldedBlock:
    """The constants of one block, float64, with its global affine folded in."""

    first: nn.Conv2d  # reads the passive half
    body: nn.Module
    log_scale: nn.Conv2d  # of the active half
    shift: nn.Conv2d  # of the active half
    limit: Tensor  # [C / 2] float64, LATENT_CLAMP for the passive half, which lacks its scale
    passive: Tensor  # int64: the channels of the input that are the passive half
    active: Tensor
    offset: Tensor  # [C], in the order of the input, what is added to every channel
    order: Tensor  # int64 [C]: the permutation after the block
    splits: list[int]  # channels of the passive and of the active half


def _fold(block: AllInOneBlock, scale: Tensor, source: Tensor) -> _FoldedBlock:
    """Fold the constants of a block.

    scale: [C] float64, the factor that each channel of the input lacks. source: int64 [C], which
    channel of the input each channel of the block is.
    """
    passive, active = torch.split(source, block.splits)
    offset = torch.empty_like(scale)
    offset[source] = block.global_offset.detach().double().flatten() / _global_scale(block)
    offset /= scale
    first = block.subnet.first
    first_weight = first.weight.detach().double() * scale[passive][:, None, None]
    last = block.subnet.last
    log_scale_weight, shift_weight = last.weight.detach().double().chunk(2)
    log_scale_bias, shift_bias = last.bias.detach().double().chunk(2)
    shift_weight = PREDICTION_SCALE * shift_weight / scale[active][:, None, None, None]
    shift_bias = PREDICTION_SCALE * shift_bias / scale[active] + offset[active]
    return _FoldedBlock(
        first=_convolution_like(first, first_weight, first.bias.detach().double()),
        body=block.subnet.fused_body(),
        log_scale=_convolution_like(
            last, PREDICTION_SCALE * log_scale_weight, PREDICTION_SCALE * log_scale_bias
        ),
        shift=_convolution_like(last, shift_weight, shift_bias),
        limit=LATENT_CLAMP / scale[passive],
        passive=passive,
        active=active,
        offset=offset,
        order=permutation(block),
        splits=list(block.splits),
    )


def _global_scale(block: AllInOneBlock) -> Tensor:
    """Return the global scale of every channel in the block's own order: float64 [C]."""
    scale: Tensor = block.global_scale_activation(block.global_scale.detach().double())
    return scale.flatten()


class _Coupling(nn.Module):
    """The part that all forms share: the sub-network and the affine of the active half.

    Attribute names become names of graph nodes; the modules marked `fp32` stay FP32 in FP16 graphs.
    """

    highest: Tensor  # [C, 1, 1], limits of what the sub-network reads
    lowest: Tensor

    def __init__(
        self,
        first: nn.Conv2d,
        body: nn.Module,
        log_scale: nn.Conv2d,
        shift: nn.Conv2d,
        limit: Tensor,
    ) -> None:
        super().__init__()
        self.register_buffer("highest", limit[:, None, None])
        self.register_buffer("lowest", -limit[:, None, None])
        self.first = first
        self.middle = body
        self.log_scale = log_scale
        self.shift = shift
        self.affine = fp32(_Affine())

    def stretch(self, passive: Tensor, active: Tensor) -> Tensor:
        hidden = self.first(passive.minimum(self.highest).maximum(self.lowest))
        hidden = self.middle(hidden)
        stretched: Tensor = self.affine(active, self.log_scale(hidden), self.shift(hidden))
        return stretched


class _PaddedCoupling(_Coupling):
    """Reads and writes all channels [N, C, h, w], in the order of the input."""

    def __init__(self, block: _FoldedBlock) -> None:
        channels = len(block.offset)
        shift = _spread_outputs(block.shift, block.active, channels)
        assert shift.bias is not None
        shift.bias.data[block.passive] = block.offset[block.passive]
        # The weights of all other channels are zero.
        limit = torch.full_like(block.offset, LATENT_CLAMP)
        limit[block.passive] = block.limit
        super().__init__(
            first=_spread_inputs(block.first, block.passive, channels),
            body=block.body,
            log_scale=_spread_outputs(block.log_scale, block.active, channels),
            shift=shift,
            limit=limit,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.stretch(x, x)


class _LastCoupling(_Coupling):
    """Reads a passive and an active half and joins them again; nothing is permuted."""

    def __init__(self, block: _FoldedBlock) -> None:
        super().__init__(block.first, block.body, block.log_scale, block.shift, block.limit)
        self.move = fp32(_Offset(block.offset[block.passive]))

    def forward(self, passive: Tensor, active: Tensor) -> Tensor:
        stretched = self.stretch(passive, active)
        return torch.cat([self.move(passive), stretched], 1)


class _GatheredCoupling(_Coupling):
    """Reads a passive and an active half and gathers those of the next block."""

    next_passive: Tensor
    next_active: Tensor

    def __init__(self, block: _FoldedBlock) -> None:
        super().__init__(block.first, block.body, block.log_scale, block.shift, block.limit)
        self.move = fp32(_Offset(block.offset[block.passive]))
        passive, active = torch.split(block.order, block.splits)
        self.register_buffer("next_passive", passive)
        self.register_buffer("next_active", active)

    def forward(self, passive: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        stretched = self.stretch(passive, active)
        joined = torch.cat([self.move(passive), stretched], 1)
        next_passive = joined.index_select(1, self.next_passive)
        next_active = joined.index_select(1, self.next_active)
        return next_passive, next_active


class _MultipliedCoupling(_Coupling):
    """Reads a passive and an active half and permutes them with one matrix product."""

    def __init__(self, block: _FoldedBlock) -> None:
        super().__init__(block.first, block.body, block.log_scale, block.shift, block.limit)
        self.splits = block.splits
        matrix = torch.eye(len(block.offset), dtype=torch.float64)[block.order]
        # The offset of the active half is in the bias of its shift already.
        no_offset = torch.zeros(len(block.active), dtype=torch.float64)
        offset = torch.cat([block.offset[block.passive], no_offset])
        self.permute = fp32(pointwise(matrix, matrix @ offset))

    def forward(self, passive: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        stretched = self.stretch(passive, active)
        permuted = self.permute(torch.cat([passive, stretched], 1))
        next_passive, next_active = torch.split(permuted, self.splits, 1)
        return next_passive, next_active


def _coupling_class(form: str, is_last: bool) -> Callable[[_FoldedBlock], _Coupling]:
    if form == "padded":
        return _PaddedCoupling
    if is_last:
        return _LastCoupling
    if form == "gathered":
        return _GatheredCoupling
    return _MultipliedCoupling


class _Affine(nn.Module):
    """x e^s + t of [N, C, h, w], with the log-scale s softly clamped."""

    def forward(self, x: Tensor, log_scale: Tensor, shift: Tensor) -> Tensor:
        return x * torch.exp(LOG_SCALE_CLAMP * torch.tanh(log_scale)) + shift


class _Offset(nn.Module):
    """Adds an offset [C] to [N, C, h, w]."""

    offset: Tensor

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", offset[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset


def _spread_inputs(layer: nn.Conv2d, places: Tensor, channels: int) -> nn.Conv2d:
    """Return a convolution of `channels` inputs: those of `layer` at `places`, else zeros."""
    assert layer.bias is not None
    weight = _spread(layer.weight.detach(), places, channels, axis=1)
    return _convolution_like(layer, weight, layer.bias.detach())


def _spread_outputs(layer: nn.Conv2d, places: Tensor, channels: int) -> nn.Conv2d:
    """Return a convolution of `channels` outputs: those of `layer` at `places`, else zeros."""
    assert layer.bias is not None
    weight = _spread(layer.weight.detach(), places, channels, axis=0)
    bias = _spread(layer.bias.detach(), places, channels, axis=0)
    return _convolution_like(layer, weight, bias)


def _spread(values: Tensor, places: Tensor, size: int, axis: int) -> Tensor:
    shape = list(values.shape)
    shape[axis] = size
    return values.new_zeros(shape).index_copy_(axis, places, values)


def _convolution_like(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Return a convolution like `layer` with other weights and numbers of channels."""
    convolution = nn.Conv2d(
        weight.shape[1],
        weight.shape[0],
        layer.kernel_size,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        dtype=weight.dtype,
    )
    assert convolution.bias is not None
    convolution.weight.data = weight
    convolution.bias.data = bias
    return convolution
