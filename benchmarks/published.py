"""What the papers' own code executes per image, for the comparison that users make: everything it computes, also what
it throws away. Each is a module around a method of ours, with the same weights and, tests say, the same result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train import TrainError
from train.backbone import residual_stage


class PublishedSimpleNet(nn.Module):
    """The authors' SimpleNet in eager mode, layout by layout.

    Its hooks do not stop the backbone, so layer4, pooling and classifier run. layer3's patches are copied into planes,
    resized and copied back. The patch features are upsampled to the input's size and copied to the host, where
    nothing reads them.
    """

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.method = method
        self.layer4 = residual_stage(method.trunk.name, 4)
        self.classifier = nn.Linear(2 * method.trunk.channels[1], 1000)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        method = self.method
        level2, level3 = method.trunk(method.trunk.normalise(image))
        self.classifier(self.layer4(level3).mean((2, 3)))
        features = self._embed(level2, level3)
        result: tuple[Tensor, Tensor] = method.judge(features)
        size = (method.geometry.height, method.geometry.width)
        unread = F.interpolate(features.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
        unread.cpu().numpy()
        return result

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        """What is needed of all this after the backbone."""
        result: tuple[Tensor, Tensor] = self.method.judge(self._embed(*levels))
        return result

    def _embed(self, level2: Tensor, level3: Tensor) -> Tensor:
        n, _, h, w = level2.shape
        patches = [_patches(level) for level in (level2, level3)]  # [N, positions, C, 3, 3]
        coarse = patches[1].reshape(n, *level3.shape[2:], -1, 3, 3).permute(0, 3, 4, 5, 1, 2)  # [N, C, 3, 3, h/2, w/2]
        planes = coarse.reshape(-1, 1, *level3.shape[2:])
        fine = F.interpolate(planes, size=(h, w), mode="bilinear", align_corners=False)
        patches[1] = fine.reshape(*coarse.shape[:4], h, w).permute(0, 4, 5, 1, 2, 3).flatten(1, 2)
        vectors = [p.reshape(n * h * w, 1, -1) for p in patches]
        levels = [F.adaptive_avg_pool1d(v, self.method.level_dim).squeeze(1) for v in vectors]
        both = torch.stack(levels, 1).reshape(n * h * w, 1, -1)
        features = F.adaptive_avg_pool1d(both, self.method.target_dim)
        return features.reshape(n, h, w, -1)


def _patches(level: Tensor) -> Tensor:
    """3x3 patches of a map [N, C, h, w] as [N, hw, C, 3, 3]."""
    unfolded = F.unfold(level, 3, padding=1).view(*level.shape[:2], 3, 3, -1)
    return unfolded.permute(0, 4, 1, 2, 3)


class ExportableSimpleNet(nn.Module):
    """The literal pipeline as it can be exported: adaptive pooling by whole factors written as plain pooling, which the
    exporter knows. Raises TrainError for dimensions that do not divide."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.method, self.trunk = method, method.trunk
        lengths = [9 * channels for channels in method.trunk.channels]
        if any(n % method.level_dim for n in lengths) or 2 * method.level_dim % method.target_dim:
            raise TrainError(
                f"{lengths} values do not pool to {method.level_dim} by whole factors: it has no literal ONNX"
            )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(*self.trunk(self.trunk.normalise(image)))

    def head(self, level2: Tensor, level3: Tensor) -> tuple[Tensor, Tensor]:
        method = self.method
        n, _, h, w = level2.shape
        patches2 = F.unfold(level2, 3, padding=1).transpose(1, 2)
        planes3 = F.unfold(level3, 3, padding=1).view(n, -1, *level3.shape[2:])
        planes3 = F.interpolate(planes3, size=(h, w), mode="bilinear", align_corners=False)
        patches3 = planes3.flatten(2).transpose(1, 2)
        factors = [9 * channels // method.level_dim for channels in method.trunk.channels]
        levels = [F.avg_pool1d(p, k, k) for p, k in zip((patches2, patches3), factors, strict=True)]
        both = 2 * method.level_dim // method.target_dim
        features: Tensor = F.avg_pool1d(torch.cat(levels, 2), both, both).view(n, h, w, -1)
        result: tuple[Tensor, Tensor] = method.judge(features)
        return result


# method -> what its authors' code runs, and the literal pipeline as it can be exported
PUBLISHED: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "simplenet": (PublishedSimpleNet, ExportableSimpleNet),
}
