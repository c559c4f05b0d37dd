"""Several linear maps of equal size side by side, each on its own part of the input.

Their first weights are drawn here too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GroupedLinear(nn.Module):
    """Map vectors [n, groups * inputs] to [n, outputs] by a block-diagonal matrix.

    `weight` [outputs, inputs] has the rows of the first group first. With one group it is the
    weight of an nn.Linear, and so is the result. `outputs` is a multiple of `groups`; ValueError
    otherwise.
    """

    def __init__(self, inputs: int, outputs: int, groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        if outputs % groups != 0:
            raise ValueError(f"{outputs} outputs do not divide into {groups} groups")
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        # As in nn.Linear.
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(inputs)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return F.linear(x, self.weight, self.bias)
        biases: Sequence[Tensor | None] = [None] * self.groups
        if self.bias is not None:
            biases = self.bias.chunk(self.groups)
        # One product after another is faster on a CPU than a batched one, which copies its input.
        outputs = []
        for part, block, bias in zip(x.chunk(self.groups, 1), self.blocks(), biases, strict=True):
            outputs.append(F.linear(part, block, bias))
        return torch.cat(outputs, 1)

    def blocks(self) -> Tensor:
        """Return the matrices of the groups, [groups, outputs / groups, inputs]."""
        return self.weight.view(self.groups, -1, self.weight.shape[1])


def draw_weights(
    linear: nn.Linear | GroupedLinear, groups: int, generator: torch.Generator, orthogonal: bool
) -> None:
    """Draw the first weights of each group of rows, by Xavier or as orthogonal matrices.

    Biases are those of an nn.Linear. All are drawn on the CPU, where `generator` is, so that every
    device gets the same values.
    """
    weight = torch.empty_like(linear.weight, device="cpu")
    for block in weight.chunk(groups):
        if orthogonal:
            nn.init.orthogonal_(block, generator=generator)
        else:
            nn.init.xavier_normal_(block, generator=generator)
    linear.weight.data.copy_(weight)
    if linear.bias is not None:
        bound = 1 / math.sqrt(weight.shape[1])
        bias = torch.empty_like(linear.bias, device="cpu")
        nn.init.uniform_(bias, -bound, bound, generator=generator)
        linear.bias.data.copy_(bias)
