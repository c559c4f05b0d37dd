"""CFLOW-AD as its authors' code computes it."""

from __future__ import annotations

import torch
from FrEIA.modules import AllInOneBlock
from torch import Tensor
from torch.nn import functional as F

from flawline.benchmarks.published.form import LiteralForm, PublishedCode
from flawline.train.blocks.position_flow import mean_log_likelihood, position_code_2d
from flawline.train.methods.cflow import CFlow

POSITIONS = 256  # of one call of a flow, in the authors' test


class PublishedCFlow(LiteralForm):
    """The authors' test: a loop over groups of positions, and the loss of each group.

    The position code is computed again for every image.
    """

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        rest = self.rest
        assert isinstance(rest, CFlow)
        likelihoods = []
        for number, level in enumerate(levels):
            n, channels, height, width = level.shape
            code = position_code_2d(height, width).to(level)
            conditions = code.flatten(1).T.repeat(n, 1)
            vectors = level.flatten(2).transpose(1, 2).reshape(-1, channels)
            groups = []
            for start in range(0, len(vectors), POSITIONS):
                stop = start + POSITIONS
                z, log_det = rest.flows[number](vectors[start:stop], [conditions[start:stop]])
                likelihood = mean_log_likelihood(z, log_det)
                # The loss is discarded.
                (-F.logsigmoid(likelihood)).sum()
                groups.append(likelihood)
            likelihoods.append(torch.cat(groups).view(n, 1, height, width))
        anomaly_map = rest.peak - rest.density(likelihoods)
        return anomaly_map.amax((1, 2)), anomaly_map


@torch.no_grad()
def perturb(method: CFlow, generator: torch.Generator) -> None:
    """Move the constants of the flows away from their initial values.

    They stay so near them that the densities are still comparable with those of good images.
    """
    for module in method.modules():
        if isinstance(module, AllInOneBlock):
            # Scales from 0.9 to 1.1 after FrEIA's activation.
            module.global_scale.uniform_(9, 11, generator=generator)
            module.global_offset.normal_(0, 0.05, generator=generator)
            module.subnet.last.weight.mul_(2)


PUBLISHED_CODE = PublishedCode[CFlow](
    as_published=PublishedCFlow,
    perturb=perturb,
    notes=(
        "Head: everything after the feature maps. (a) calls the flows for 256 positions at a time,",
        "and computes the position code for each image; (b) calls them once for all; (c) is",
        "convolutions whose biases contain the code, without the last rotation.",
    ),
)
