"""SuperSimpleNet as its authors' code computes it (github.com/blaz-r/SuperSimpleNet)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.benchmarks.published.form import Form, PublishedCode
from flawline.train.methods.supersimplenet import SuperSimpleNet

HEAD_CHANNELS = 128
HEAD_WINDOW = 5


class LiteralSuperSimpleNet(Form):
    """The segmentation path with 1x1 convolutions in place of linear layers, as the authors do."""

    def __init__(self, method: SuperSimpleNet) -> None:
        super().__init__()
        self.method = method
        self.backbone = method.backbone
        # torch's counter does not see the products of a module whose parameters want gradients.
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(*self.backbone.extract(image))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        return self.method.smooth(self._logits(self._adapted(levels)))

    def _adapted(self, levels: tuple[Tensor, ...]) -> Tensor:
        return _pointwise(self.method.embed(levels), self.method.adapter)

    def _logits(self, adapted: Tensor) -> Tensor:
        """Compute logits [N, 1, h, w] of adapted features [N, D, h, w]."""
        layers: Any = self.method.discriminator
        first, norm, activation, last = layers
        hidden = F.batch_norm(
            _pointwise(adapted, first),
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            eps=norm.eps,
        )
        return _pointwise(activation(hidden), last)


def _pointwise(x: Tensor, linear: Any) -> Tensor:
    """Apply a linear layer to the channels of [N, C, h, w]."""
    return F.conv2d(x, linear.weight[..., None, None], linear.bias)


class PublishedSuperSimpleNet(LiteralSuperSimpleNet):
    """The same with the authors' classification head, whose score is not used here.

    Its weights are torch's initial ones.
    """

    def __init__(self, method: SuperSimpleNet) -> None:
        super().__init__(method)
        channels = sum(method.backbone.channels) + 1
        self.classify = nn.Sequential(
            nn.Conv2d(channels, HEAD_CHANNELS, HEAD_WINDOW, padding=HEAD_WINDOW // 2),
            nn.BatchNorm2d(HEAD_CHANNELS),
            nn.ReLU(),
        )
        self.weigh = nn.Linear(2 * HEAD_CHANNELS + 2, 1)
        self.requires_grad_(False)

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        adapted = self._adapted(levels)
        logits = self._logits(adapted)
        pooled = []
        for planes in (self.classify(torch.cat([adapted, logits], 1)), logits):
            pooled += [planes.amax((2, 3)), planes.mean((2, 3))]
        self.weigh(torch.cat(pooled, 1))
        return self.method.smooth(logits)


PUBLISHED_CODE = PublishedCode[SuperSimpleNet](
    as_published=PublishedSuperSimpleNet,
    as_literal=LiteralSuperSimpleNet,
    notes=(
        "Head: everything after the feature maps. (a) also computes the score of the",
        "classification head.",
    ),
)
