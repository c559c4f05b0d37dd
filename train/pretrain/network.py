"""The network that is pretrained: a backbone, heads that name textures, and the losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.train.backbones import create_backbone
from flawline.train.backbones.facts import PRETRAINED_LEVELS, RANDOM
from flawline.train.pretrain.schedule import PretrainingSettings
from flawline.train.pretrain.textures import Batch

SMOOTHING = 0.05  # label smoothing
DENSE = 0.5  # weight of the loss of single positions
FAULTS = 14.0  # weight of the loss of faults
# Floor for squared distances, relative to the mean distance between two images.
NEAR = 1e-3
# Positions sampled per level and image. Neighbouring positions are redundant; twelve train as well
# as all of them.
POSITIONS = 12


class Classifier(nn.Module):
    """A backbone with three linear heads: one on the means of both levels, one on each level.

    `curves` hold two numbers per level, with which the logarithm of a distance becomes the logit of
    a fault: the logarithm of the slope, and the offset.
    """

    def __init__(self, settings: PretrainingSettings) -> None:
        super().__init__()
        self.backbone = create_backbone(settings.backbone, PRETRAINED_LEVELS)
        self.backbone.load(RANDOM, settings.seed)
        channels = self.backbone.channels
        generator = torch.Generator().manual_seed(settings.seed)
        self.image_head = _head(sum(channels), settings.classes, generator)
        self.heads = nn.ModuleList()
        self.curves = nn.ParameterList()
        for level_channels in channels:
            self.heads.append(_head(level_channels, settings.classes, generator))
            self.curves.append(torch.zeros(2))

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return the loss of a batch.

        With a generator, which draws positions, the batch must be a paired one, and the losses of
        single positions and of faults are included.
        """
        images = self._normalise(batch.images)
        levels = self.backbone(images)
        means = torch.cat([level.mean((2, 3)) for level in levels], 1)
        image_share = batch.share.mean((2, 3), keepdim=True)
        logits = self.image_head(means)
        loss = _naming_loss(logits, batch, image_share)
        if generator is None:
            return loss
        for head, level, curve in zip(self.heads, levels, self.curves, strict=True):
            naming = _position_loss(head, level, batch, generator)
            loss = loss + DENSE * naming
            faults = _fault_loss(level.float(), batch.damage, curve)
            loss = loss + FAULTS * faults
        return loss

    def _normalise(self, images: Tensor) -> Tensor:
        mean = images.new_tensor(self.backbone.mean_rgb).view(3, 1, 1)
        std = images.new_tensor(self.backbone.std_rgb).view(3, 1, 1)
        normalised = (images - mean) / std
        return normalised.contiguous(memory_format=torch.channels_last)


def _head(channels: int, classes: int, generator: torch.Generator) -> nn.Linear:
    head = nn.Linear(channels, classes)
    nn.init.normal_(head.weight, 0, 0.01, generator=generator)
    nn.init.zeros_(head.bias)
    return head


def _naming_loss(logits: Tensor, batch: Batch, share: Tensor) -> Tensor:
    """Return the cross entropy of naming the textures, with smoothed labels.

    `logits` are [n, classes] or [n, positions, classes]; `share` [n, 1, ...] is how much of each
    position the other texture covers. Images that are not bare do not count.
    """
    n = len(logits)
    classes = logits.shape[-1]
    logits = logits.reshape(n, -1, classes)
    share = share.reshape(n, -1)
    log_sum = torch.logsumexp(logits.float(), -1)
    index = torch.stack([batch.labels, batch.others], -1)[:, None]
    index = index.expand(-1, logits.shape[1], -1)
    both = logits.gather(2, index).float()
    target = (1 - share) * both[..., 0] + share * both[..., 1]
    mean_logit = logits.mean(-1, dtype=torch.float32)
    loss = log_sum - (1 - SMOOTHING) * target
    loss = loss - SMOOTHING * mean_logit
    total = (loss.mean(1) * batch.bare).sum()
    return total / batch.bare.sum().clamp(min=1)


def _position_loss(
    head: nn.Module, level: Tensor, batch: Batch, generator: torch.Generator
) -> Tensor:
    """Return the loss of naming the texture at random positions of a level [n, c, h, w]."""
    grid = (level.shape[2], level.shape[3])
    share = F.adaptive_avg_pool2d(batch.share, grid).flatten(2)
    n, _, total = share.shape
    order = torch.rand(n, total, generator=generator, device=share.device)
    _, positions = order.topk(min(POSITIONS, total))
    positions = positions[:, None]  # [n, 1, count]
    index = positions.expand(-1, level.shape[1], -1)
    vectors = level.flatten(2).gather(2, index)
    logits = head(vectors.transpose(1, 2))
    return _naming_loss(logits, batch, share.gather(2, positions))


def _fault_loss(level: Tensor, damage: Tensor, curve: Tensor) -> Tensor:
    """Return the cross entropy of recognising the faults of a paired batch.

    At each position of the level [2n, c, h, w], the distance between the two photographs decides.
    """
    faulty, sound = level.chunk(2)
    between_images = (sound - sound.roll(1, 0)).square().sum(1)
    usual = between_images.mean().clamp(min=1e-12)
    squared = (faulty - sound).square().sum(1, keepdim=True)
    distance = torch.log(squared / usual + NEAR)
    logits = curve[0].exp() * distance + curve[1]
    target = F.adaptive_max_pool2d(damage, level.shape[2:])
    target = target[: len(faulty)]
    return F.binary_cross_entropy_with_logits(logits, target)
