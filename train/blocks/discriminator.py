"""A linear adapter and a discriminator of feature vectors: their layers, training and export.

The discriminator is a linear layer, BatchNorm, LeakyReLU and one weighted sum. It acts on single
vectors, so that everything up to LeakyReLU is one affine map of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from flawline.train.blocks.averaging import average_of_share
from flawline.train.loop import Steps, batch_indices
from flawline.train.method import Fit, Phase

Array = npt.NDArray[Any]
LossOf = Callable[[int, Array], Tensor]
Watch = Callable[[int, nn.Module, nn.Module], None]

NEGATIVE_SLOPE = 0.2


def build_discriminator(dim: int, hidden: int) -> nn.Sequential:
    """Return a discriminator of vectors [n, dim] that gives logits [n, 1]."""
    return nn.Sequential(
        nn.Linear(dim, hidden),
        nn.BatchNorm1d(hidden),
        nn.LeakyReLU(NEGATIVE_SLOPE),
        nn.Linear(hidden, 1, bias=False),
    )


def initialise_head(adapter: nn.Linear, discriminator: nn.Sequential, seed: int) -> None:
    """Draw the weights of all linear layers as the authors' codes do, and reset BatchNorm."""
    generator = torch.Generator().manual_seed(seed)
    for linear in (adapter, *discriminator):
        if isinstance(linear, nn.BatchNorm1d):
            linear.reset_parameters()
        if not isinstance(linear, nn.Linear):
            continue
        # Drawn on the CPU, where the generator is, so that every device gets the same values.
        weight = torch.empty_like(linear.weight, device="cpu")
        linear.weight.data.copy_(nn.init.xavier_normal_(weight, generator=generator))
        if linear.bias is not None:
            bound = 1 / math.sqrt(linear.in_features)
            bias = torch.empty_like(linear.bias, device="cpu")
            nn.init.uniform_(bias, -bound, bound, generator=generator)
            linear.bias.data.copy_(bias)


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class HeadTraining:
    """How a head is trained on batches of images.

    optimisers: of the head's weights, with the published learning rates.
    factor_at: returns what these rates are multiplied by after a share of the training, from 0 to
        1. It depends on the share alone, so that a resumed training has the same rates.
    averaged_share: share of the training over which the weights are averaged.
    images, batch: how many there are, and how many belong to a step.
    total: the number of steps; None for that of the `Fit`.
    """

    optimisers: Sequence[Optimizer]
    factor_at: Callable[[float], float]
    averaged_share: float
    images: int
    batch: int
    total: int | None = None

    def run(
        self, head: nn.Module, fit: Fit, phase: Phase, loss_of: LossOf, watch: Watch | None = None
    ) -> int:
        """Train a head to the end or the deadline; return the steps done. It has the average then.

        loss_of: maps a step and the indices of its images to the loss.
        watch: is called after each step with the number of steps done, the head and the average of
            its weights, a module like the head.
        """
        averaging = average_of_share(self.averaged_share)
        average = AveragedModel(head, multi_avg_fn=averaging, use_buffers=True)
        rates = self._published_rates()
        total = self.total or fit.steps
        steps = Steps(fit, phase, self.optimisers, total, {"average": average})
        self._set_rates(rates, steps.start / total)

        def after() -> None:
            average.update_parameters(head)
            done = int(average.n_averaged)
            self._set_rates(rates, done / total)
            if watch is not None:
                watch(done, head, average.module)

        batches = batch_indices(self.images, self.batch, fit.seed, steps.start)
        done = steps.run(batches, loss_of, after)
        head.load_state_dict(average.module.state_dict())
        return done

    def _groups(self) -> Iterable[dict[str, Any]]:
        for optimiser in self.optimisers:
            yield from optimiser.param_groups

    def _published_rates(self) -> list[float]:
        # Read before a snapshot is loaded, which has the rates of its step.
        return [group["lr"] for group in self._groups()]

    def _set_rates(self, rates: Sequence[float], share: float) -> None:
        factor = self.factor_at(share)
        for group, rate in zip(self._groups(), rates, strict=True):
            group["lr"] = factor * rate


def even_decay(first: float, last: float) -> Callable[[float], float]:
    """Return `factor_at` of rates that are multiplied by the same factor in every step."""

    def factor_at(share: float) -> float:
        return float(first * (last / first) ** share)

    return factor_at


# ---------------------------------------------------------------- the exported form


def fold_head(adapter: nn.Linear, discriminator: nn.Sequential) -> tuple[Tensor, Tensor, Tensor]:
    """Fold adapter, discriminator and BatchNorm up to LeakyReLU into one affine map.

    Returns its matrix [hidden, D] and bias [hidden], scaled by the last layer's absolute weights,
    and the signs [hidden] of those; hidden units are in the order of their signs. LeakyReLU is
    positively homogeneous, so that the logit is the sum of signs times LeakyReLU of the map. The
    terms of the sum have one scale, which suits INT8.
    """
    layers: Any = discriminator
    first = layers[0]
    norm = layers[1]
    last = layers[3].weight.data[0]
    scale = last.abs() * norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight = scale[:, None] * (first.weight @ adapter.weight)
    offset = first.weight @ adapter.bias + first.bias - norm.running_mean
    bias = scale * offset + last.abs() * norm.bias
    sign = last.sign()
    order = sign.argsort(stable=True)
    return weight.detach()[order], bias.detach()[order], sign[order]
