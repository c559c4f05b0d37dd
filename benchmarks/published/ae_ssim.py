"""The literal pipeline of AE-SSIM, divided after the auto-encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from flawline.benchmarks.published.form import Form, PublishedCode
from flawline.train.methods.ae_ssim import AESSIM


class LiteralAESSIM(Form):
    """The literal pipeline, divided as the fused form is."""

    def __init__(self, method: AESSIM) -> None:
        super().__init__()
        self.method = method
        # torch's counter does not see the products of a module whose parameters want gradients.
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(*levels_of(self.method, image))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        x, logits = levels
        return self.method.judge(x / 255, torch.sigmoid(logits))


def levels_of(method: AESSIM, image: Tensor) -> tuple[Tensor, ...]:
    """Return what the head reads: images [N, 3, H, W] from 0 to 255, and the logits for them."""
    x = image.permute(0, 3, 1, 2).to(method.dtype)
    return x, method.network(x / 255)


PUBLISHED_CODE = PublishedCode[AESSIM](
    as_literal=LiteralAESSIM,
    # ONNX Runtime has no pooling in float64.
    literal_exports=False,
    levels=levels_of,
    notes=(
        "Backbone: the auto-encoder; head: everything after it. The head of (b) computes 1 - SSIM",
        "in float64, as scikit-image does, that of (c) in float32 in a form that does not cancel.",
    ),
)
