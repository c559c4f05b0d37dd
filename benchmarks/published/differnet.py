"""DifferNet's flow as its authors' code computes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flawline.benchmarks.published.form import LiteralForm, PublishedCode
from flawline.train.blocks.vector_flow import DenseSubnetwork, VectorFlow
from flawline.train.methods.differnet import DifferNet


class PublishedDifferNet(LiteralForm):
    """The flow in eager mode, with the loss that the authors' code computes for every image.

    The log-determinant comes from a second pass through every sub-network.
    """

    def __init__(self, method: DifferNet) -> None:
        super().__init__(method)
        self.rest.flow = _FlowWithLoss(method.flow)


class _FlowWithLoss(nn.Module):
    def __init__(self, flow: VectorFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z: Tensor
        z, _ = self.flow(x)
        _, log_determinant = self.flow(x)
        energy = 0.5 * z.square().sum(1)
        # The loss is discarded.
        (energy - log_determinant).mean() / z.shape[1]
        return z, log_determinant


@torch.no_grad()
def perturb(method: Any, generator: torch.Generator) -> None:
    """Move the statistics away from those of the few images, and the flow from its initial one."""
    method.mean.add_(0.1 * torch.randn(method.mean.shape, generator=generator))
    for module in method.modules():
        if isinstance(module, DenseSubnetwork):
            module.last.weight.mul_(2)


PUBLISHED_CODE = PublishedCode[DifferNet](
    as_published=PublishedDifferNet,
    perturb=perturb,
    notes=(
        "Head: means over positions, flow and score; the backbone is that of all rotations and",
        "scales. (a) computes the log-determinant by a second pass through the sub-networks, and",
        "the loss from it. The rotations are those of the setting, in (a) too.",
    ),
)
