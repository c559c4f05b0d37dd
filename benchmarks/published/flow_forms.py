"""The published code of the normalising flows: FrEIA's, which FastFlow and SSNF both use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.benchmarks.published.form import LiteralForm
from flawline.train.blocks.attention import Attention, position_code
from flawline.train.blocks.flow import PREDICTION_SCALE, permutation
from flawline.train.method import Method

NOTES = (
    "Head: everything after the feature maps. (a) is FrEIA's forward: permutations as convolutions",
    "with dense matrices, log-determinants, and the loss from them. (b) is without the last two,",
    "which exporters drop; (e) permutes by an index. Fused couplings compute all channels",
    "(padded), gather their halves, or permute by a matrix product.",
)


class FlowForm(LiteralForm):
    """A method of normalising flows in which modules of some types are exchanged for others."""

    def __init__(
        self, method: Method, exchange: Mapping[type[nn.Module], Callable[[Any], nn.Module]]
    ) -> None:
        super().__init__(method)
        # A list first, because the tree of modules changes during the loop.
        for parent in list(self.rest.modules()):
            for name, child in parent.named_children():
                for kind, make in exchange.items():
                    if isinstance(child, kind):
                        setattr(parent, name, make(child))


class PublishedFlows(FlowForm):
    """The published code in eager mode, the same for both methods.

    FrEIA's forward computes its log-determinants and the loss from them even when nothing is
    trained. The attention of SSNF computes its position code again for every image.
    """

    def __init__(self, method: Method) -> None:
        super().__init__(method, {SequenceINN: _FlowWithLoss, Attention: _PublishedAttention})


class _FlowWithLoss(nn.Module):
    def __init__(self, flow: SequenceINN) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = self.flow(x)
        energy = 0.5 * z.square().sum((1, 2, 3))
        # The loss is discarded.
        (energy - log_det).mean()
        return z, log_det


class _PublishedAttention(nn.Module):
    """Self-attention with explicit weights, where `Attention` calls torch's one operator."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.project = attention.project
        self.heads = attention.heads

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(n, h * w, c)
        # `Attention` computes the position code once and stores it.
        projected = self.project(tokens + position_code(h * w, c).to(x))
        projected = projected.view(n, h * w, 3, self.heads, c // self.heads)
        key, value, query = projected.permute(2, 0, 3, 1, 4)  # [N, heads, h * w, c / heads] each
        scaled = query * (c // self.heads) ** -0.5
        weights = torch.softmax(scaled @ key.transpose(2, 3), -1)
        mixed = (weights @ value).transpose(1, 2).reshape(n, h * w, c)
        result: Tensor = mixed.transpose(1, 2).reshape(n, c, h, w)
        return result


class ExportableFlows(FlowForm):
    """The literal flow as an exporter leaves it: without the log-determinants.

    With `by_index` permutations are indices, as in later releases of FrEIA. Version 0.2 multiplies
    by a dense matrix.
    """

    def __init__(self, method: Method, by_index: bool = False) -> None:
        def without_log_det(flow: SequenceINN) -> nn.Module:
            return _FlowWithoutLogDet(flow, by_index)

        super().__init__(method, {SequenceINN: without_log_det})


class _FlowWithoutLogDet(nn.Module):
    def __init__(self, flow: SequenceINN, by_index: bool) -> None:
        super().__init__()
        self.flow = flow
        self.orders: list[Tensor | None] = []
        for block in flow.module_list:
            self.orders.append(permutation(block) if by_index else None)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        for block, order in zip(self.flow.module_list, self.orders, strict=True):
            x = _affine_coupling(block, x)
            x = F.conv2d(x, block.w_perm) if order is None else x[:, order]
        return x, None


def _affine_coupling(block: AllInOneBlock, x: Tensor) -> Tensor:
    """The coupling and the global affine of a block, without its permutation."""
    passive, active = torch.split(x, block.splits, 1)
    predicted = PREDICTION_SCALE * block.subnet(passive)
    half = active.shape[1]
    log_scale = block.clamp * torch.tanh(predicted[:, :half])
    active = active * torch.exp(log_scale) + predicted[:, half:]
    global_scale = block.global_scale_activation(block.global_scale)
    result: Tensor = torch.cat([passive, active], 1) * global_scale + block.global_offset
    return result


def literal_by_index(method: Method) -> ExportableFlows:
    """Return the literal flow with permutations as indices."""
    return ExportableFlows(method, by_index=True)


@torch.no_grad()
def perturb(method: Method, generator: torch.Generator) -> None:
    """Move the constants of the flows and of layer norms away from their initial values."""
    for module in method.modules():
        if isinstance(module, AllInOneBlock):
            # Scales from 0.6 to 1.3 after FrEIA's activation.
            module.global_scale.uniform_(6, 13, generator=generator)
            module.global_offset.normal_(0, 0.1, generator=generator)
            module.subnet.last.weight.mul_(2)
    for module in method.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.2, generator=generator)
