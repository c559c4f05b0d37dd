"""The residuals of good images at every position, by which maps of residuals are standardised.

What a network cannot reconstruct of a good part, such as a fine grid, has the largest residuals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flawline.runtime.image import Image
from flawline.train.progress import Progress


@torch.inference_mode()
def residual_statistics(
    images: Sequence[Image],
    residual_of: Callable[[Tensor], Tensor],
    device: torch.device,
    progress: Progress,
) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the residuals of images at every position, float64 [H, W] each.

    images: uint8 BGR [H, W, 3] each. residual_of: computes the residuals [1, H, W] of one image,
    uint8 [1, H, W, 3] on the device.
    """
    total = squares = torch.zeros((), dtype=torch.float64, device=device)
    for number, image in enumerate(images, 1):
        residual = residual_of(torch.from_numpy(image)[None].to(device))[0].double()
        total = total + residual
        squares = squares + residual * residual
        progress("residuals", number, len(images))
    mean = total / len(images)
    return mean, (squares / len(images) - mean * mean).clamp_min(0).sqrt()


class Standardised(nn.Module):
    """Maps [N, H, W] minus an offset and divided by a scale, [H, W] each."""

    offset: Tensor
    factor: Tensor

    def __init__(self, offset: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", offset)
        self.register_buffer("factor", 1 / scale)

    def forward(self, anomaly_map: Tensor) -> Tensor:
        return (anomaly_map - self.offset) * self.factor
