"""How SSNF trains a flow: on which images, with which loss, and the learning rate.

Chiu and Lai, "Self-supervised normalizing flows for image anomaly detection and localization" (CVPR
workshops 2023), with the constants of the authors' code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np
import torch
from FrEIA.framework import SequenceINN
from torch import Tensor

from flawline.runtime.image import Image
from flawline.train.loop import Steps
from flawline.train.method import Fit, Phase

# Synthetic anomalies that are less likely than this, in nats per dimension, do not train any more:
# the authors' limit of 1e5 nats, divided by the number of dimensions of their features.
CAP = 0.166
# Share of the good images that is held out to choose the score, and their largest number.
VALIDATION_SHARE = 0.1
MAX_VALIDATION = 32
# Epochs in which the learning rate falls along a cosine, and its value at the end.
EPOCHS = 100
LAST_RATE = 1e-6


class DrawnImages(Sequence[Image]):
    """Some images of a sequence in another order; each access reads the sequence."""

    def __init__(self, images: Sequence[Image], indices: list[int]) -> None:
        self.images = images
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Image: ...

    @overload
    def __getitem__(self, index: slice) -> DrawnImages: ...

    def __getitem__(self, index: int | slice) -> Image | DrawnImages:
        if isinstance(index, slice):
            return DrawnImages(self.images, self.indices[index])
        return np.asarray(self.images[self.indices[index]])


def draw_images(
    images: Sequence[Image], count: int | None, seed: int
) -> tuple[Sequence[Image], Sequence[Image]]:
    """Draw good images to train on, and others to choose the score on.

    images: uint8 [H, W, 3] each, whose access must be cheap: all of them are read in every epoch.
    count: how many to draw in all, None for all; so many are copied, and access to `images` need
    not be cheap. If they are too few to hold any out, the score is chosen on images that are
    trained on.
    """
    order = np.random.default_rng((seed, 2)).permutation(len(images))[:count]
    drawn: Sequence[Image] = DrawnImages(images, order.tolist())
    if count is not None:
        drawn = list(drawn)
    held_out = min(MAX_VALIDATION, int(VALIDATION_SHARE * len(drawn)))
    if held_out < 2:  # one image alone would be blended with itself
        return drawn, drawn[:MAX_VALIDATION]
    return drawn[held_out:], drawn[:held_out]


def contrast(good: Tensor, synthetic: Tensor, shape: Sequence[int]) -> Tensor:
    """Compute the loss of a step from negative log-likelihoods.

    good, synthetic: [B] each, of features of this shape. Only those synthetic anomalies count that
    are likelier than the least likely good image and closer than CAP nats per dimension: the others
    are separated already, and their likelihood would fall without end.
    """
    worst = good.detach().max()
    distance = synthetic.detach()
    counted = synthetic[(distance < worst) & (distance < CAP * math.prod(shape))]
    if not len(counted):
        return good.mean()
    return 0.5 * good.mean() - 0.5 * counted.mean()


def train_flow(
    flow: SequenceINN,
    loss_of: Callable[[range], Tensor],
    fit: Fit,
    phase: Phase,
    images: int,
    batch: int,
    learning_rate: float,
) -> int:
    """Minimise the loss of a flow; return how many steps are done in all.

    loss_of: the loss of a step from the numbers of its draws, `batch` per step. images: how many
    there are to train on. The learning rate is that at the start.
    """
    weights = [weight for weight in flow.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(weights, learning_rate, eps=1e-4, weight_decay=1e-5)
    steps = Steps(fit, phase, [optimiser], fit.steps)
    half = half_period(fit.steps, batch, images)

    def loss_of_step(step: int, draws: range) -> Tensor:
        optimiser.param_groups[0]["lr"] = cosine_rate(learning_rate, step / half)
        # Dropout draws from the global generator; with this, a resumed run continues exactly.
        torch.manual_seed((fit.seed << 32) + step)
        return loss_of(draws)

    flow.train()
    return steps.run(_draws(steps.start, batch), loss_of_step)


def _draws(start: int, batch: int) -> Iterator[range]:
    """Yield the numbers of the draws of each step, from step `start` on."""
    for step in itertools.count(start):
        yield range(step * batch, (step + 1) * batch)


def half_period(steps: int, batch: int, images: int) -> float:
    """Return the number of steps in which the learning rate falls, or rises again.

    It is about EPOCHS epochs, and the training has an odd number of them: the last step, whose
    weights are saved, has LAST_RATE.
    """
    halves = steps * batch / (EPOCHS * images)
    odd = 2 * max(0, round((halves - 1) / 2)) + 1
    return max(steps, 1) / odd


def cosine_rate(rate: float, halves: float) -> float:
    """Return the learning rate after so many half periods: `rate` at 0, LAST_RATE at 1."""
    return LAST_RATE + (rate - LAST_RATE) * (1 + math.cos(math.pi * halves)) / 2
