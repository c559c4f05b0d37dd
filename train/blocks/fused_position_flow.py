"""Flows over positions in the form that is exported: 1x1 convolutions on the whole feature map.

Every rewrite is algebra on the constants of a trained flow (see
`flawline.train.blocks.position_flow`): the function stays the same.
"""

from __future__ import annotations

import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.train.blocks.flow import PREDICTION_SCALE
from flawline.train.blocks.fused import Size, fp32, pointwise, resize_matrix
from flawline.train.blocks.position_flow import LOG_NORMAL, LOG_SCALE_CLAMP

# Values that a convolution reads are limited to this, because FP16 ends at 65504. Those of good
# images stay below a hundredth of it.
FP16_LIMIT = 6e4


class FusedPositionFlow(nn.Module):
    """A flow for export: a level [N, C, h, w] to anomaly scores [N, 1, h, w] of its positions.

    The score is constant - exp(log-likelihood per channel - largest).

    The condition of a position becomes a constant plane of biases per hidden value. Scale and
    offset of a block are part of its rotation, and the last rotation is left out, because it does
    not change the length of the latent. Of the log-determinants, only the tangents of the
    couplings (`_Affine`) depend on the image; everything else is one constant.

    Pass a float64 flow and code [CODE_CHANNELS, h, w].
    """

    def __init__(self, flow: SequenceINN, code: Tensor, largest: float, constant: float) -> None:
        super().__init__()
        blocks = list(flow.module_list)
        self.splits = blocks[0].splits
        self.couplings = nn.ModuleList()
        self.rotations = nn.ModuleList()
        for block in blocks[:-1]:
            self.couplings.append(_Coupling(block, code))
            self.rotations.append(_Rotation(block))
        self.couplings.append(_Coupling(blocks[-1], code, with_offset=True))
        self.score = fp32(_Score(blocks, largest, constant))

    def forward(self, level: Tensor) -> Tensor:
        passive, active = torch.split(level, self.splits, 1)
        tangents = []
        for coupling, rotation in zip(self.couplings, self.rotations, strict=False):
            active, tangent = coupling(passive, active)
            tangents.append(tangent)
            passive, active = rotation(passive, active)
        active, tangent = self.couplings[-1](passive, active)
        score: Tensor = self.score(passive, active, *tangents, tangent)
        return score


def _scale(block: AllInOneBlock) -> Tensor:
    """Return the scale of every channel after the coupling of a block: float64 [C]."""
    scale: Tensor = block.global_scale_activation(block.global_scale.detach().double())
    return scale.flatten()


def _offset(block: AllInOneBlock) -> Tensor:
    """Return the offset of every channel in front of its scale: float64 [C]."""
    offset: Tensor = block.global_offset.detach().double().flatten() / _scale(block)
    return offset


class _Coupling(nn.Module):
    """The coupling of a block: the new active half, and the tangent of its log-scale.

    Attribute names become names of graph nodes; the modules marked `fp32` stay FP32 in FP16 graphs.
    with_offset: adds the offset of the active half, which belongs to the rotation otherwise.
    """

    def __init__(self, block: AllInOneBlock, code: Tensor, with_offset: bool = False) -> None:
        super().__init__()
        passive, active = block.splits
        first, last = block.subnet.first, block.subnet.last
        weight = first.weight.detach().double()
        condition = torch.einsum("kc,chw->khw", weight[:, passive:], code.double())
        condition = condition + first.bias.detach().double()[:, None, None]
        predicted = PREDICTION_SCALE * last.weight.detach().double()
        predicted_bias = PREDICTION_SCALE * last.bias.detach().double()
        shift_bias = predicted_bias[active:]
        if with_offset:
            shift_bias = shift_bias + _offset(block)[passive:]
        self.first = pointwise(weight[:, :passive].contiguous())
        self.condition = _Condition(condition)
        self.middle = nn.Hardtanh(0, FP16_LIMIT)
        self.log_scale = pointwise(predicted[:active], predicted_bias[:active])
        self.shift = pointwise(predicted[active:], shift_bias)
        self.affine = fp32(_Affine())

    def forward(self, passive: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.middle(self.condition(self.first(passive)))
        stretched: tuple[Tensor, Tensor] = self.affine(
            active, self.log_scale(hidden), self.shift(hidden)
        )
        return stretched


class _Condition(nn.Module):
    """Adds what the position adds to every hidden value: constant planes [K, h, w]."""

    planes: Tensor

    def __init__(self, planes: Tensor) -> None:
        super().__init__()
        self.register_buffer("planes", planes[None])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.planes


class _Affine(nn.Module):
    """x e^s + t of [N, C, h, w], with the log-scale s softly clamped, and its tangent.

    The tangent is the hyperbolic one that clamps, s / LOG_SCALE_CLAMP.
    """

    def forward(self, x: Tensor, log_scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        tangent = torch.tanh(log_scale)
        return x * torch.exp(LOG_SCALE_CLAMP * tangent) + shift, tangent


class _Rotation(nn.Module):
    """Scale, offset and rotation after a coupling, as one matrix per half of the result.

    The limits are for FP16: an infinite value of one channel would become an undefined one of the
    others in the convolutions that read it.
    """

    def __init__(self, block: AllInOneBlock) -> None:
        super().__init__()
        passive = block.splits[0]
        rotation = block.w_perm.detach().double()
        matrix = rotation * _scale(block)
        bias = rotation @ block.global_offset.detach().double().flatten()
        self.limit = nn.Hardtanh(-FP16_LIMIT, FP16_LIMIT)
        self.to_passive = pointwise(matrix[:passive], bias[:passive])
        self.to_active = pointwise(matrix[passive:], bias[passive:])

    def forward(self, passive: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat([passive, self.limit(active)], 1)
        # The active half is read in FP32 alone, where nothing overflows.
        return self.limit(self.to_passive(joined)), self.to_active(joined)


class _Score(nn.Module):
    """The scores of a latent that lacks scale, and in its passive half also offset.

    The log-likelihood is one sum over the channels: of the tangents of all couplings and of the
    squares of the latent.
    """

    offset: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, blocks: list[AllInOneBlock], largest: float, constant: float) -> None:
        super().__init__()
        self.constant = constant
        passive, active = blocks[-1].splits
        channels = passive + active
        self.register_buffer("offset", _offset(blocks[-1])[:passive, None, None])
        of_tangents = torch.full((active,), LOG_SCALE_CLAMP, dtype=torch.float64)
        squares = -0.5 * _scale(blocks[-1]).square()
        weight = torch.cat([of_tangents, squares]) / channels
        self.register_buffer("weight", weight[None, :, None, None])
        bias = LOG_NORMAL - largest
        for block in blocks:
            bias += float(_scale(block).log().mean())
        self.register_buffer("bias", torch.tensor([bias], dtype=torch.float64))

    def forward(self, passive: Tensor, active: Tensor, *tangents: Tensor) -> Tensor:
        total, *others = tangents
        for tangent in others:
            total = total + tangent
        moved = passive + self.offset
        terms = torch.cat([total, moved * moved, active * active], 1)
        return self.constant - torch.exp(F.conv2d(terms, self.weight, self.bias))


class AlignedUpsample(nn.Module):
    """Bilinear resize [N, C, h, w] to a fixed size, in which corners lie on corners.

    No integer scale describes it, so it is two small matrix products.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, source: Size, target: Size) -> None:
        super().__init__()
        columns = resize_matrix(source[1], target[1], align_corners=True)
        self.register_buffer("rows", resize_matrix(source[0], target[0], align_corners=True))
        self.register_buffer("columns", columns.T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ (x @ self.columns)
