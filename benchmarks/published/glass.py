"""GLASS as its authors' code computes it (github.com/cqylunlun/GLASS)."""

from __future__ import annotations

from torch import Tensor

from flawline.benchmarks.published.form import PublishedCode
from flawline.benchmarks.published.simplenet import ExportableSimpleNet, PublishedSimpleNet
from flawline.train.methods.glass import Glass


class PublishedGlass(PublishedSimpleNet):
    """The authors' GLASS in eager mode: SimpleNet's code without the features that are not read.

    The sigmoid at its end is left out, because score and map are logits here.
    """

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.method.judge(self.features(image))


PUBLISHED_CODE = PublishedCode[Glass](
    as_published=PublishedGlass,
    as_literal=ExportableSimpleNet,
    notes=("Head: everything after the feature maps; that of (a) without layer4 and classifier.",),
)
