"""Anomalous feature vectors near normal ones: noise, gradient ascent and a limit of the distance.

Chen et al., "A unified anomaly synthesis strategy with gradient ascent for industrial anomaly
detection and localization" (GLASS, ECCV 2024), section 3.3, as the authors' code computes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.train.blocks.local_anomalies import LocalVectors
from flawline.train.loop import half_precision

# The published distances belong to noise of 0.015 in 1536 dimensions, whose length is about
# 0.015 sqrt(1536). Relative to it, they suit any noise and dimension.
PUBLISHED_LENGTH = 0.015 * math.sqrt(1536)
NEAREST = 0.5 / PUBLISHED_LENGTH
ASCENT = 0.001 / PUBLISHED_LENGTH
LIMITED_EVERY = 5  # steps of the ascent
# Of the vectors' distances from the mean of their position: the radius of the hypersphere.
RADIUS_QUANTILE = 0.75
HARDEST = 0.5  # the easier half of the local vectors is left out
GAMMA = 2.0  # exponent of the focal loss
SMALLEST = 1e-10  # added to lengths that are divided by
# Vectors anomalous [n, D] -> the same, at an allowed distance.
Limit = Callable[[Tensor], Tensor]


class Good(NamedTuple):
    """Features [n, D] of good patches, their positions [n] on the grid, and noise [n, D]."""

    features: Tensor
    positions: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Ascent:
    """How far vectors are moved towards what the discriminator takes for normal.

    steps: how often. length: of one step, in the unit of the vectors. limited_every: the distance
    is limited after so many steps.
    """

    steps: int
    length: float
    limited_every: int


def limit_length(vectors: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Scale vectors [n, D] so that their lengths lie between two numbers."""
    length = vectors.norm(dim=1, keepdim=True)
    scale: Tensor = length.clamp(low, high) / (length + SMALLEST)
    return vectors * scale


def within(centres: Tensor, low: Tensor | float, high: Tensor | float) -> Limit:
    """Return a limit of the distance from centres [n, D] to between two numbers."""

    def limit(vectors: Tensor) -> Tensor:
        return centres + limit_length(vectors - centres, low, high)

    return limit


def ascend(
    logits_of: Callable[[Tensor], Tensor],
    normal: Tensor,
    anomalous: Tensor,
    ascent: Ascent,
    limit: Limit,
) -> Tensor:
    """Move vectors [n, D] uphill on the loss that takes them for anomalous.

    logits_of: maps vectors [2n, D], `normal` [n, D] first, to logits [2n] that are positive if
    normal. The steps are constants for autograd, the limits are not.
    """
    for step in range(ascent.steps):
        moved = anomalous.detach().requires_grad_()
        logits = logits_of(torch.cat([normal.detach(), moved]))[len(normal) :]
        (gradient,) = torch.autograd.grad(F.softplus(logits).mean(), moved)
        length = gradient.norm(dim=1, keepdim=True)
        anomalous = anomalous + ascent.length * (gradient / (length + SMALLEST))
        if (step + 1) % ascent.limited_every == 0:
            anomalous = limit(anomalous)
    return anomalous


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Let passes in train mode leave the running statistics of a module's BatchNorm as they are."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def hardest_focal_loss(logits: Tensor, anomalous: Tensor, quantile: float, gamma: float) -> Tensor:
    """Return the mean focal loss of the vectors that are judged worst.

    logits: [n], positive if normal. anomalous: bool [n]. quantile: share of the vectors, from 0 to
    1, that are left out because their probability is nearest to the truth. gamma: exponent of the
    focal loss.
    """
    target = anomalous.to(logits.dtype)
    cross_entropy = F.binary_cross_entropy_with_logits(-logits, target, reduction="none")
    missed = -torch.expm1(-cross_entropy)  # 1 minus the probability of the truth
    hardest = missed.detach() >= torch.quantile(missed.detach(), quantile)
    return (missed**gamma * cross_entropy)[hardest].mean()


@dataclass(frozen=True)
class AscentLoss:
    """The loss of GLASS on an adapter and a discriminator of vectors.

    discriminator: gives logits [n, 1] that are positive if normal. steps: of the ascent.
    update_statistics: whether its passes count in the running statistics of BatchNorm.
    """

    adapter: nn.Module
    discriminator: nn.Module
    steps: int
    update_statistics: bool

    def __call__(self, good: Good, local: LocalVectors, mean: Tensor | None) -> Tensor:
        """Compute the loss of good vectors, of what the ascent makes of them, and of local ones.

        mean: of the good features, [positions, D], around which the hypersphere lies; None for the
        manifold. BatchNorm sees the local vectors on their own.
        """
        clean = self.adapter(good.features)
        spoiled = self.adapter(local.features)
        length = float(good.noise.square().sum(1).mean().sqrt())
        if mean is None:
            limit = within(clean, NEAREST * length, 2 * NEAREST * length)
        else:
            with torch.no_grad():
                centres = self.adapter(mean[good.positions])
                local_centres = self.adapter(mean[local.positions])
                radius = _radius(clean - centres, (spoiled - local_centres)[~local.anomalous])
            limit = within(centres, radius, 2 * radius)
            far = within(local_centres, 2 * radius, 4 * radius)(spoiled)
            spoiled = torch.where(local.anomalous[:, None], far, spoiled)
        ascent = Ascent(self.steps, ASCENT * length, LIMITED_EVERY)
        keep = nullcontext() if self.update_statistics else kept_statistics(self.discriminator)
        with keep:
            moved = ascend(self._logits, clean, clean + good.noise, ascent, limit)
        logits = self._logits(torch.cat([clean, moved]))
        loss = F.softplus(-logits[: len(clean)]).mean() + F.softplus(logits[len(clean) :]).mean()
        return loss + hardest_focal_loss(self._logits(spoiled), local.anomalous, HARDEST, GAMMA)

    def _logits(self, vectors: Tensor) -> Tensor:
        with half_precision(vectors.device):
            logits: Tensor = self.discriminator(vectors)
        return logits[:, 0].float()


def _radius(*offsets: Tensor) -> Tensor:
    """Return the quantile of the lengths of offsets [n, D] that is the hypersphere's radius."""
    return torch.quantile(torch.cat(offsets).norm(dim=1), RADIUS_QUANTILE)
