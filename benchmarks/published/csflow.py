"""CS-Flow as its authors' code computes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flawline.benchmarks.published.form import LiteralForm, PublishedCode
from flawline.train.blocks.cross_scale_flow import CrossConvolutions
from flawline.train.blocks.stored_levels import flatten_levels
from flawline.train.methods.csflow import CSFlow


class PublishedCSFlow(LiteralForm):
    """The authors' code, which computes the loss of every image even when nothing is trained."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        pyramid: Any = self.backbone
        x = pyramid.normalise(image)
        levels: list[Tensor] = []
        for step in pyramid.steps:
            size = (x.shape[2] // step, x.shape[3] // step)
            levels += pyramid.network(F.interpolate(x, size=size))
        return self.head(*levels)

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        method: Any = self.rest
        latents, log_determinant = method.flow(method.standardised(levels))
        energy = 0.5 * flatten_levels(latents).square().sum(1)
        # The loss is discarded.
        (energy - log_determinant).mean()
        result: tuple[Tensor, Tensor] = method.judge(latents)
        return result


@torch.no_grad()
def perturb(method: CSFlow, generator: torch.Generator) -> None:
    """Move the gains away from 0, at which sub-networks have no effect."""
    for module in method.modules():
        if isinstance(module, CrossConvolutions):
            module.gains.uniform_(0.5, 1.5, generator=generator)


PUBLISHED_CODE = PublishedCode[CSFlow](
    as_published=PublishedCSFlow,
    perturb=perturb,
    notes=(
        "Head: everything after the feature maps. (a) computes the log-determinant and the loss,",
        "which are discarded; (b) computes the log-determinant in torch, exporters drop it. (b)",
        "permutes by an index and splits; (c) gathers both halves of a permutation.",
    ),
)
