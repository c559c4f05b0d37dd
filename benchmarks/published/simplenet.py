"""SimpleNet as its authors' code computes it (github.com/DonaldRR/SimpleNet)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.benchmarks.published.form import Form, PublishedCode
from flawline.train import TrainError
from flawline.train.backbones.resnet import residual_stage
from flawline.train.blocks.adapted_patches import AdaptedPatches
from flawline.train.methods.simplenet import SimpleNet


class PublishedSimpleNet(Form):
    """The authors' SimpleNet in eager mode, in the order and the memory layouts of their code.

    Their hooks do not stop the backbone, so layer4, pooling and classifier run too. The patches of
    layer3 are copied into planes, resized and copied back. The patch features are upsampled to the
    size of the input and copied to the host, where nothing reads them.
    """

    def __init__(self, method: AdaptedPatches) -> None:
        super().__init__()
        self.method = method
        self.layer4 = residual_stage(method.backbone.name, 4)
        self.classifier = nn.Linear(2 * method.backbone.channels[1], 1000)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        method = self.method
        features = self.features(image)
        result = method.judge(features)
        # The authors' code returns these features too, and its caller drops them.
        unread = F.interpolate(
            features.permute(0, 3, 1, 2),
            size=(method.geometry.height, method.geometry.width),
            mode="bilinear",
            align_corners=False,
        )
        unread.cpu().numpy()
        return result

    def features(self, image: Tensor) -> Tensor:
        """Compute patch features [N, h, w, D2], with what the backbone computes in vain."""
        level2, level3 = self.method.backbone.extract(image)
        # The result is discarded, as everything that is computed beyond layer3.
        self.classifier(self.layer4(level3).mean((2, 3)))
        return self._embed(level2, level3)

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute only what the result needs: no layer4, classifier or unread upsampling."""
        level2, level3 = levels
        return self.method.judge(self._embed(level2, level3))

    def _embed(self, level2: Tensor, level3: Tensor) -> Tensor:
        """Return the patch features [N, h, w, D2] of both levels."""
        n, _, h, w = level2.shape
        fine = _patches(level2)
        coarse = _resized_patches(_patches(level3), tuple(level3.shape[2:]), (h, w))
        pooled = []
        for patches in (fine, coarse):
            vectors = patches.reshape(n * h * w, 1, -1)  # [n * h * w, 1, 9 * C]
            vectors = F.adaptive_avg_pool1d(vectors, self.method.settings.level_dim)
            pooled.append(vectors.squeeze(1))
        both = torch.stack(pooled, 1).reshape(n * h * w, 1, -1)  # [n * h * w, 1, 2 * D1]
        features = F.adaptive_avg_pool1d(both, self.method.settings.target_dim)
        return features.reshape(n, h, w, -1)


def _patches(level: Tensor) -> Tensor:
    """Return the 3x3 patches of a map [N, C, h, w] as [N, h * w, C, 3, 3]."""
    unfolded = F.unfold(level, 3, padding=1)  # [N, C * 9, h * w]
    unfolded = unfolded.view(*level.shape[:2], 3, 3, -1)
    return unfolded.permute(0, 4, 1, 2, 3)


def _resized_patches(patches: Tensor, grid: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    """Resize a grid of patches [N, h * w, C, 3, 3] to `size`, one plane for each value."""
    planes = patches.reshape(len(patches), *grid, -1, 3, 3)
    planes = planes.permute(0, 3, 4, 5, 1, 2)  # [N, C, 3, 3, h, w]
    fine = F.interpolate(
        planes.reshape(-1, 1, *grid), size=size, mode="bilinear", align_corners=False
    )
    fine = fine.reshape(*planes.shape[:4], *size)
    return fine.permute(0, 4, 5, 1, 2, 3).flatten(1, 2)


class ExportableSimpleNet(Form):
    """The literal pipeline in operators that can be exported to ONNX.

    Raises TrainError for dimensions that do not divide.
    """

    def __init__(self, method: AdaptedPatches) -> None:
        super().__init__()
        self.method = method
        self.backbone = method.backbone
        settings = method.settings
        self.pooling = _PatchPooling(
            self.backbone.channels, settings.level_dim, settings.target_dim
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(*self.backbone.extract(image))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        level2, level3 = levels
        return self.method.judge(self.pooling(level2, level3))


class _PatchPooling:
    """The patch features of two levels, with adaptive pooling written as plain pooling.

    The exporter knows adaptive pooling by whole factors only. `channels` are those of the levels.
    """

    def __init__(self, channels: Sequence[int], level_dim: int, target_dim: int) -> None:
        self.factors = []
        for count in channels:
            self.factors.append(_whole_factor(9 * count, level_dim))
        self.last_factor = _whole_factor(2 * level_dim, target_dim)

    def __call__(self, level2: Tensor, level3: Tensor) -> Tensor:
        """Return the patch features [N, h, w, target_dim] on the grid of layer2."""
        n, _, h, w = level2.shape
        fine = F.unfold(level2, 3, padding=1)  # [N, 9 * C, h * w]
        # Each value of a patch of layer3 is a plane that is resized to the grid of layer2.
        planes = F.unfold(level3, 3, padding=1).view(n, -1, *level3.shape[2:])
        planes = F.interpolate(planes, size=(h, w), mode="bilinear", align_corners=False)
        pooled = []
        for columns, factor in zip((fine, planes.flatten(2)), self.factors, strict=True):
            pooled.append(F.avg_pool1d(columns.transpose(1, 2), factor, factor))
        both = torch.cat(pooled, 2)  # [N, h * w, 2 * D1]
        features = F.avg_pool1d(both, self.last_factor, self.last_factor)
        return features.view(n, h, w, -1)


def _whole_factor(length: int, pooled: int) -> int:
    if length % pooled:
        raise TrainError(
            f"{length} values cannot be pooled to {pooled} by whole factors, so the literal "
            "pipeline has no ONNX form; choose other dimensions with --set"
        )
    return length // pooled


PUBLISHED_CODE = PublishedCode[SimpleNet](
    as_published=PublishedSimpleNet,
    as_literal=ExportableSimpleNet,
    notes=(
        "Head: everything after the feature maps; that of (a) without layer4, classifier and the",
        "unread upsampling.",
    ),
)
