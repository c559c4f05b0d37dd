"""RIAD in the order of its paper: one pass of the network after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flawline.benchmarks.published.form import Form, PublishedCode
from flawline.train.methods.riad import GREY, PARTS, RIAD


class LiteralRIAD(Form):
    """The literal pipeline, divided after the passes of the network as the fused form is."""

    def __init__(self, method: RIAD) -> None:
        super().__init__()
        self.input = _Centred()
        self.backbone = _Passes(method)
        self.method = method
        # torch's counter does not see the products of a module whose parameters want gradients.
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.input(image)
        return self.head(x, self.backbone(x))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        x, logits = levels
        size = self.method.settings.size
        cells = len(self.method.settings.training.cells)
        completed = torch.tanh(logits).view(-1, cells, PARTS, 3, *size)
        hidden = (~self.method.kept).to(logits.dtype).view(cells, PARTS, 1, *size)
        reconstructions = (completed * hidden).sum(2)
        return self.method.judge(x / GREY, reconstructions.unbind(1))


class _Centred(nn.Module):
    """Images, uint8 BGR [N, H, W, 3], to [N, 3, H, W] from -127.5 to 127.5."""

    def __init__(self) -> None:
        super().__init__()
        # Its type is that of the form; nothing reads its value.
        self.register_buffer("kind", torch.zeros(()))

    kind: Tensor

    def forward(self, image: Tensor) -> Tensor:
        return image.permute(0, 3, 1, 2).to(self.kind.dtype) - GREY


class _Passes(nn.Module):
    """One pass of the network for each mask: [N, 3, H, W] to [MN, 3, H, W] for M masks."""

    def __init__(self, method: RIAD) -> None:
        super().__init__()
        self.network = method.network
        self.register_buffer("kept", method.kept)

    kept: Tensor

    def forward(self, x: Tensor) -> Tensor:
        x = x / GREY
        logits = [self.network(x * mask) for mask in self.kept.to(x.dtype)]
        return torch.stack(logits, 1).flatten(0, 1)


def levels_of(method: RIAD, image: Tensor) -> tuple[Tensor, ...]:
    """Return what the head reads: the images minus grey, and the results of all passes."""
    form = LiteralRIAD(method).to(method.dtype)
    x = form.input(image)
    return x, form.backbone(x)


PUBLISHED_CODE = PublishedCode[RIAD](
    as_literal=LiteralRIAD,
    levels=levels_of,
    notes=(
        "Backbone: the passes of the network; head: everything after them. In (b), the network",
        "runs for one mask after the other, and in (c) once on a batch of all masks.",
    ),
)
