"""A backbone that is trained to react to small local differences: the loss of SPD.

Zou et al., "SPot-the-Difference self-supervised pre-training for anomaly detection and
segmentation" (ECCV 2022): the features of an image and of its partner with a blended patch become
less similar, and those of two slightly different views of it stay similar.

What is ours: features are compared position by position instead of after pooling, since one per
cent of the pixels hardly moves their mean (on solar cells, the pooled features of ResNet18's levels
have cosines of 0.9995 and more with those of a blended image, and features at the patch 0.6 to
0.8); and the features of the second view are those of the pretrained backbone. These hold the
trained ones in place, as the paper's ordinary task on ImageNet does. As in SimSiam, which is one of
these tasks, no gradient flows into them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.train.anomalies.smooth_blend import SmoothBlend
from flawline.train.backbones.base import Backbone
from flawline.train.blocks.tuned_backbone import convolution_parameters, set_rates
from flawline.train.loop import Steps, half_precision
from flawline.train.method import Fit, Phase


class LocalTraining(NamedTuple):
    """How the backbone is trained.

    first_level: the first stage that is trained. batch: good images per step. learning_rate: how
    far a step of Adam moves the weights of a convolution at the start, relative to their root mean
    square. weight: of the similarity to images with a blended patch, against that to the other
    view.
    """

    first_level: int
    batch: int
    learning_rate: float
    weight: float


class Batch(NamedTuple):
    """Images of a step, uint8 [N, H, W, 3] BGR, and alpha float32 [N, H, W] of the patches."""

    normal: Tensor
    other: Tensor
    blended: Tensor
    alpha: Tensor


def batch_of(series: SmoothBlend, draws: Sequence[int]) -> Batch:
    """Return the images of some draws."""
    views = [series.views(draw) for draw in draws]
    stacked = []
    for images in zip(*views, strict=True):
        stacked.append(torch.from_numpy(np.stack(images)))
    return Batch(*stacked)


def mean_similarity(first: Tensor, second: Tensor, share: Tensor | None = None) -> Tensor:
    """Compute the mean cosine similarity of two levels [N, C, h, w], over images and positions.

    share: [N, H, W], how much each pixel counts; positions count as the mean of their pixels.
    """
    similarity = F.cosine_similarity(first.float(), second.float(), 1)
    if share is None:
        return similarity.mean()
    grid = (similarity.shape[1], similarity.shape[2])
    weights = F.adaptive_avg_pool2d(share[:, None], grid)[:, 0]
    return (weights * similarity).sum() / weights.sum()


class LocalDifferences(nn.Module):
    """The loss of a backbone that is trained from `pretrained` on."""

    def __init__(self, backbone: Backbone, pretrained: Backbone, training: LocalTraining) -> None:
        super().__init__()
        self.backbone = backbone
        self.pretrained = pretrained
        self.weight = training.weight
        parts = backbone.stages_from(training.first_level)
        self.trained = convolution_parameters(parts)
        # Levels before the first trained stage are those of the pretrained backbone.
        self.compared = []
        for index, level in enumerate(backbone.levels):
            if level >= training.first_level:
                self.compared.append(index)

    def forward(self, batch: Batch) -> Tensor:
        """Compute the loss of a batch: 0 where both views have equal features, plus the patches."""
        with torch.no_grad():
            targets = self.pretrained.extract(batch.other)
        both = self.backbone.extract(torch.cat([batch.normal, batch.blended]))
        losses = []
        for index in self.compared:
            normal, blended = both[index].chunk(2)
            other_view = mean_similarity(normal, targets[index])
            patch = mean_similarity(normal, blended, batch.alpha)
            losses.append(1 - other_view + self.weight * patch)
        return torch.stack(losses).mean()


def train_differences(
    loss: LocalDifferences, series: SmoothBlend, fit: Fit, phase: Phase, training: LocalTraining
) -> int:
    """Train until `fit.steps` or the deadline; return the steps done."""
    groups = []
    for parameter in loss.trained:
        # A rate in proportion to the weights means the same with and without folded BatchNorms.
        size = float(parameter.detach().square().mean().sqrt())
        rate = training.learning_rate * size
        groups.append({"params": [parameter], "lr": rate, "initial": rate})
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(groups)
    steps = Steps(fit, phase, [optimiser], fit.steps)
    device = loss.trained[0].device

    def batches() -> Iterator[Batch]:
        for step in range(steps.start, fit.steps):
            yield batch_of(series, range(step * training.batch, (step + 1) * training.batch))

    def loss_of(step: int, batch: Batch) -> Tensor:
        set_rates(optimiser, step / fit.steps)
        moved = Batch(*(images.to(device) for images in batch))
        with half_precision(device):
            value: Tensor = loss(moved)
        return value

    return steps.run(batches(), loss_of)
