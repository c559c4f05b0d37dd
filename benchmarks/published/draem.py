"""The literal pipeline of DRAEM, divided before the last convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flawline.benchmarks.published.form import Form, PublishedCode
from flawline.train.blocks.pictures import planes
from flawline.train.methods.draem import DRAEM


class LiteralDRAEM(Form):
    """The literal pipeline, divided as the fused form is; the authors' code computes no more."""

    def __init__(self, method: DRAEM) -> None:
        super().__init__()
        self.backbone = _Networks(method)
        self.last = method.difference.last
        self.judge = method.judge
        # torch's counter does not see the products of a module whose parameters want gradients.
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.backbone(image))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        return self.judge(self.last(levels[0]))


class _Networks(nn.Module):
    """Images, uint8 BGR [N, H, W, 3], to the features before the last convolution."""

    def __init__(self, method: DRAEM) -> None:
        super().__init__()
        self.reconstruction = method.reconstruction
        self.difference = method.difference

    def forward(self, image: Tensor) -> Tensor:
        x = planes(image, self.difference.last.weight.dtype)
        return self.difference.features(torch.cat([self.reconstruction(x), x], 1))


def levels_of(method: DRAEM, image: Tensor) -> tuple[Tensor, ...]:
    """Return what the head reads: the features before the last convolution."""
    return (_Networks(method)(image),)


PUBLISHED_CODE = PublishedCode[DRAEM](
    as_literal=LiteralDRAEM,
    levels=levels_of,
    notes=("Backbone: both networks; head: the last convolution and everything after it.",),
)
