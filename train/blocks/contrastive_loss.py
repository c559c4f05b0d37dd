"""How SSNF trains a flow: on which images, with which loss, and the learning rate.

Chiu and Lai, "Self-supervised normalizing flows for image anomaly detection and localization" (CVPR
workshops 2023), with the constants of the authors' code. `relative_contrast` is not theirs.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from FrEIA.framework import SequenceINN
from torch import Tensor

from flawline.runtime.image import Image
from flawline.train.loop import Stateful, Steps, half_cosine
from flawline.train.method import Fit, Phase

# Synthetic anomalies that are less likely than this, in nats per dimension, do not train any more:
# the authors' limit of 1e5 nats, divided by the number of dimensions of their features.
CAP = 0.166
# Limit of the relative contrast, in nats per dimension, and the weight of its anomalies.
MARGIN = 1.0
PUSH = 0.05
# Steps over which the progress averages the share of the anomalies that count.
RECENT = 20
# Which synthetic anomalies are trained against: those of the published limits, those of the
# relative one, or none.
NEGATIVES = ("limited", "near", "none")
# In the facts of a training.
KEPT_SHARE = "kept_share"
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


def contrast(good: Tensor, synthetic: Tensor, shape: Sequence[int]) -> tuple[Tensor, int]:
    """Compute the published loss of a step, and how many synthetic anomalies count in it.

    good, synthetic: negative log-likelihoods [B] each, of features of this shape. Only those
    synthetic anomalies count that are likelier than the least likely good image and closer than CAP
    nats per dimension: the others are separated already, and their likelihood would fall without
    end.
    """
    worst = good.detach().max()
    distance = synthetic.detach()
    counted = synthetic[(distance < worst) & (distance < CAP * math.prod(shape))]
    if not len(counted):
        return good.mean(), 0
    return 0.5 * good.mean() - 0.5 * counted.mean(), len(counted)


def relative_contrast(good: Tensor, synthetic: Tensor, shape: Sequence[int]) -> tuple[Tensor, int]:
    """Compute a loss whose limit follows the likelihoods, and how many anomalies count in it.

    The arguments are those of `contrast`. CAP is a level of likelihood that good images reach late,
    if at all, so that nothing counts before. Here the likelier half of the synthetic anomalies
    counts, and each that is less than MARGIN nats per dimension behind the least likely good image.
    Each has a small weight of its own, because with half of all weight on the few that count, good
    images become unlikely, too. Its gradient falls with the distance from that image, so that the
    likelihood does not fall without end.
    """
    if not len(synthetic):
        return good.mean(), 0
    worst = good.detach().max()
    margin = MARGIN * math.prod(shape)
    distance = synthetic.detach()
    limit = torch.maximum(worst + margin, distance.median())
    behind = synthetic[distance <= limit] - worst
    gain = behind.clamp(max=0) + margin * torch.log1p(behind.clamp(min=0) / margin)
    return (1 - PUSH) * good.mean() - PUSH * gain.sum() / len(synthetic), len(behind)


class Contrast:
    """The loss of the steps of a training, and the share of the synthetic anomalies that count.

    negatives: one of NEGATIVES. shape: of the features. fit: gets the share of the last steps for
    the line of the progress, and that of the last half of the steps as a fact. The state belongs to
    a snapshot.
    """

    def __init__(self, negatives: str, shape: Sequence[int], fit: Fit) -> None:
        self._contrast = contrast
        if negatives == "near":
            self._contrast = relative_contrast
        self._shape = shape
        self._fit = fit
        # Of the last half of the steps.
        self._kept = 0
        self._seen = 0
        # Of the last steps, for the progress alone.
        self._recent: deque[tuple[int, int]] = deque(maxlen=RECENT)

    def loss(self, step: int, good: Tensor, synthetic: Tensor) -> Tensor:
        """Compute the loss of a step, numbered from 0 on, from negative log-likelihoods [n] each.

        There may be no synthetic anomalies.
        """
        if not len(synthetic):
            return good.mean()
        loss, kept = self._contrast(good, synthetic, self._shape)
        self._recent.append((kept, len(synthetic)))
        recent = np.sum(self._recent, 0)
        self._fit.remark(f"blended images that count: {recent[0] / recent[1]:.0%}")
        if step >= self._fit.steps // 2:
            self._kept += kept
            self._seen += len(synthetic)
            self._fit.facts[KEPT_SHARE] = f"{self._kept / self._seen:.3f}"
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self._kept, "seen": self._seen}

    def load_state_dict(self, state_dict: Any) -> None:
        self._kept = state_dict["kept"]
        self._seen = state_dict["seen"]


def note_kept_share(fit: Fit) -> None:
    """Note for the user how many synthetic anomalies counted, if there were any."""
    if KEPT_SHARE in fit.facts:
        share = float(fit.facts[KEPT_SHARE])
        fit.notes.append(f"{share:.0%} of the blended images counted in the last half of training")


def train_flow(
    flow: SequenceINN,
    loss_of: Callable[[range], Tensor],
    fit: Fit,
    phase: Phase,
    images: int,
    batch: int,
    learning_rate: float,
    others: Mapping[str, Stateful] | None = None,
) -> int:
    """Minimise the loss of a flow; return how many steps are done in all.

    loss_of: the loss of a step from the numbers of its draws, `batch` per step. images: how many
    there are to train on. The learning rate is that at the start. others: as in
    `Steps`.
    """
    weights = [weight for weight in flow.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(weights, learning_rate, eps=1e-4, weight_decay=1e-5)
    steps = Steps(fit, phase, [optimiser], fit.steps, others)
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
    return LAST_RATE + (rate - LAST_RATE) * half_cosine(halves)
