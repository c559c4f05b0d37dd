"""RevDist as its authors' code computes it (github.com/hq-deng/RD4AD)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flawline.benchmarks.published.form import Form, PublishedCode
from flawline.train.backbones.resnet import residual_stage
from flawline.train.blocks.patches import gaussian
from flawline.train.methods.rd4ad import SIGMA, RevDist


class PublishedRevDist(Form):
    """The authors' RevDist in eager mode, in the order of their code.

    Their teacher also computes layer4, which nothing reads. Every level's map is resized and copied
    to the host on its own, and the sum is smoothed there. The Gaussian is that of torch, because
    scipy is no requirement of this project.
    """

    def __init__(self, method: RevDist) -> None:
        super().__init__()
        self.method = method
        self.layer4 = residual_stage(method.backbone.name, 4)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        levels = self.method.backbone.extract(image)
        self.layer4(levels[-1])
        return self.head(*levels)

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        method = self.method
        size = method.settings.size
        decoded = method.decoder(method.embedding(*levels))
        total = np.zeros((len(levels[0]), *size), levels[0].cpu().numpy().dtype)
        for level, other in zip(levels, decoded, strict=True):
            distance = 1 - F.cosine_similarity(level, other)
            resized = F.interpolate(
                distance[:, None], size=size, mode="bilinear", align_corners=True
            )
            total += resized[:, 0].cpu().numpy()
        anomaly_map = gaussian(torch.from_numpy(total)[:, None], SIGMA)[:, 0]
        return anomaly_map.amax((1, 2)), anomaly_map


PUBLISHED_CODE = PublishedCode[RevDist](
    as_published=PublishedRevDist,
    notes=("Head: everything after the teacher's feature maps; (a) also computes layer4.",),
)
