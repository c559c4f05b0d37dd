"""InTra in the order of its paper's code: one pass of the network for each patch of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flawline.benchmarks.published.form import Form, PublishedCode
from flawline.train.blocks.patch_windows import image_of, patches_of
from flawline.train.methods.intra import InTra


class _DividedInTra(Form):
    """The literal pipeline, divided after the passes of the network as the fused form is."""

    def __init__(self, method: InTra, passes: nn.Module) -> None:
        super().__init__()
        self.backbone = passes
        self.method = method
        # torch's counter does not see the products of a module whose parameters want gradients.
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = image.permute(0, 3, 1, 2).to(self.method.dtype)
        return self.head(x, self.backbone(x))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        x, patches = levels
        return self.method.judge(x / 255, image_of(patches, self.method.settings.size))


class PublishedInTra(_DividedInTra):
    """The authors' order: the window of one patch after the other."""

    def __init__(self, method: InTra) -> None:
        super().__init__(method, _OneByOne(method))


class LiteralInTra(_DividedInTra):
    """All windows in one batch."""

    def __init__(self, method: InTra) -> None:
        super().__init__(method, _AllAtOnce(method))


class _OneByOne(nn.Module):
    """Images [N, 3, H, W] from 0 to 255 to predicted patches [N, patches, 768], one by one."""

    def __init__(self, method: InTra) -> None:
        super().__init__()
        self.network = method.network
        self.register_buffer("table", method.table)

    table: Tensor

    def forward(self, image: Tensor) -> Tensor:
        patches = patches_of(image / 255)
        predicted = []
        for number, window in enumerate(self.table):
            table = window.expand(len(patches), -1)
            own = torch.full((len(patches),), number, device=window.device)
            predicted.append(self.network(patches[:, window], table, own))
        return torch.stack(predicted, 1)


class _AllAtOnce(nn.Module):
    """Images [N, 3, H, W] from 0 to 255 to predicted patches [N, patches, 768], in one batch."""

    def __init__(self, method: InTra) -> None:
        super().__init__()
        self.network = method.network
        self.register_buffer("table", method.table)

    table: Tensor

    def forward(self, image: Tensor) -> Tensor:
        windows = patches_of(image / 255)[:, self.table].flatten(0, 1)
        # Not len(): the exporter would write the number of images of its example.
        images = image.shape[0]
        table = self.table.repeat(images, 1)
        own = torch.arange(len(self.table), device=image.device).repeat(images)
        predicted: Tensor = self.network(windows, table, own)
        return predicted.view(images, len(self.table), -1)


def levels_of(method: InTra, image: Tensor) -> tuple[Tensor, ...]:
    """Return what the head reads: images [N, 3, H, W] from 0 to 255, and the predicted patches."""
    x = image.permute(0, 3, 1, 2).to(method.dtype)
    return x, _AllAtOnce(method)(x)


PUBLISHED_CODE = PublishedCode[InTra](
    as_published=PublishedInTra,
    as_literal=LiteralInTra,
    levels=levels_of,
    notes=(
        "Backbone: the passes of the network; head: everything after them. The authors' code (a)",
        "runs the network once for each patch. In (c), the tokens of a patch are computed once for",
        "all windows up to the attention of the first block.",
    ),
)
