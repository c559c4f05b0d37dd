"""The smallest method: no backbone, distance to the mean of the good images on a coarse grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.options import option
from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.blocks.fused import build_fused, fp32
from flawline.train.method import Fit, Method, MethodSettings


@dataclass(frozen=True)
class MeanImageSettings(MethodSettings):
    cell: int = option(8, "pixels per cell of the grid", flag=True)

    def __post_init__(self) -> None:
        if self.cell < 1:
            raise TrainError(f"--cell {self.cell} is not at least 1")


class MeanImage(Method):
    """Colours averaged over cells, compared with their mean over the good images."""

    name: ClassVar[str] = "toy"
    Settings = MeanImageSettings
    tuned_on: ClassVar[tuple[str, ...]] = ()

    settings: MeanImageSettings
    mean: Tensor  # [3, h, w]

    def __init__(self, settings: MeanImageSettings) -> None:
        super().__init__(settings)
        height, width = settings.size
        grid = (height // settings.cell, width // settings.cell)
        self.register_buffer("mean", torch.zeros(3, *grid))

    @classmethod
    def settings_for(cls, backbone: str) -> MeanImageSettings:
        return MeanImageSettings("", Geometry("stretch", 256, 256))

    def cells(self, image: Tensor) -> Tensor:
        """Average colours [N, 3, h, w] of images, uint8 BGR [N, H, W, 3]."""
        planes = image.permute(0, 3, 1, 2).to(self.mean.dtype) / 255
        return F.avg_pool2d(planes, self.settings.cell)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        distance = (self.cells(image) - self.mean).square().sum(1, keepdim=True).sqrt()
        size = self.settings.size
        anomaly_map = F.interpolate(distance, size=size, mode="bilinear", align_corners=False)
        return anomaly_map.amax((1, 2, 3)), anomaly_map[:, 0]

    @torch.inference_mode()
    def fit(self, fit: Fit) -> int:
        total = torch.zeros_like(self.mean)
        for index, image in enumerate(fit.images):
            batch = torch.from_numpy(image)[None].to(self.device)
            total += self.cells(batch)[0]
            fit.progress("mean", index + 1, len(fit.images))
        self.mean.copy_(total / len(fit.images))
        return fit.steps

    def fused(self) -> nn.Module:
        return build_fused(self, FusedMeanImage)


class FusedMeanImage(nn.Module):
    """Averages and the division by 255 as one strided convolution that subtracts the mean."""

    def __init__(self, method: MeanImage) -> None:
        super().__init__()
        cell = method.settings.cell
        self.average = nn.Conv2d(3, 3, cell, cell, groups=3, bias=False)
        self.average.double()
        self.average.weight.data.fill_(1 / (255 * cell**2))
        self.register_buffer("mean", method.mean)
        self.distance = fp32(_Distance())
        self.upsample = nn.Upsample(scale_factor=float(cell), mode="bilinear", align_corners=False)

    mean: Tensor

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        planes = image.to(self.mean.dtype).permute(0, 3, 1, 2)
        distance = self.distance(self.average(planes) - self.mean)
        anomaly_map = self.upsample(distance)[:, 0]
        return anomaly_map.amax((1, 2)), anomaly_map


class _Distance(nn.Module):
    """The norm over channels, [N, 3, h, w] to [N, 1, h, w]: squares need FP32."""

    def forward(self, offset: Tensor) -> Tensor:
        return offset.square().sum(1, keepdim=True).sqrt()
