"""STFPM as its authors' code computes it (github.com/gdwang08/STFPM)."""

from __future__ import annotations

from torch import Tensor, nn

from flawline.benchmarks.published.form import Form, PublishedCode
from flawline.train.backbones.base import Backbone
from flawline.train.backbones.resnet import residual_stage
from flawline.train.methods.stfpm import STFPM


class PublishedSTFPM(Form):
    """The authors' STFPM in eager mode: both networks also compute layer4, which nothing reads."""

    def __init__(self, method: STFPM) -> None:
        super().__init__()
        self.method = method
        self.unread = nn.ModuleList()
        for network in (method.backbone, method.student):
            self.unread.append(residual_stage(network.name, 4))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        levels = levels_of(self.method, image)
        half = len(levels) // 2
        for stage, last in zip(self.unread, (levels[half - 1], levels[-1]), strict=True):
            stage(last)
        return self.head(*levels)

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        half = len(levels) // 2
        return self.method.judge(levels[:half], levels[half:])


class LiteralSTFPM(Form):
    """The literal pipeline, in which both networks are one module as in the fused form."""

    def __init__(self, method: STFPM) -> None:
        super().__init__()
        self.backbone = _LiteralNetworks(method.backbone, method.student)
        self.judge = method.judge
        # torch's counter does not see the products of a module whose parameters want gradients.
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(*self.backbone(image))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        half = len(levels) // 2
        return self.judge(levels[:half], levels[half:])


class _LiteralNetworks(nn.Module):
    """Images, uint8 BGR [N, H, W, 3], to the levels of the teacher, then those of the student."""

    def __init__(self, teacher: Backbone, student: Backbone) -> None:
        super().__init__()
        self.teacher = teacher
        self.student = student

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        levels = []
        for network in (self.teacher, self.student):
            levels += network(network.normalise(image))
        return tuple(levels)


def levels_of(method: STFPM, image: Tensor) -> tuple[Tensor, ...]:
    """Return what the head reads: the levels of the teacher, then those of the student."""
    return (*method.backbone.extract(image), *method.student.extract(image))


PUBLISHED_CODE = PublishedCode[STFPM](
    as_published=PublishedSTFPM,
    as_literal=LiteralSTFPM,
    levels=levels_of,
    notes=(
        "Backbone: teacher and student; head: everything after their feature maps. Both networks",
        "of (a) also compute layer4.",
    ),
)
