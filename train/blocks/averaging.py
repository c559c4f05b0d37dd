"""A running average of weights that has forgotten its beginning at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Average = Callable[[Sequence[Tensor], Sequence[Tensor], object], None]


def average_of_share(share: float) -> Average:
    """Return the `multi_avg_fn` of an AveragedModel that averages the last `share` of the steps.

    After t steps the newest weights count 1 / (share t), at most 1; a share of 0 keeps the newest
    alone. This is the polynomial-decay averaging of Shamir and Zhang, "Stochastic gradient descent
    for non-smooth optimization", ICML 2013. A decay that is fixed from the first step on would keep
    a part of the initial weights for several times its window. They change the activations, to
    which the averaged statistics of a BatchNorm then no longer belong.
    """

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: object) -> None:
        steps = int(count) + 1  # type: ignore[call-overload]
        weight = 1 / max(1.0, share * steps)
        for mean, newest in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(newest, weight)
            else:
                mean.copy_(newest)

    return update
