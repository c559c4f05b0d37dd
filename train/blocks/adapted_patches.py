"""The detectors that judge adapted patch features by a discriminator, and their exported form.

Liu, Zhou, Xu and Wang, "SimpleNet: a simple network for image anomaly detection and localization",
CVPR 2023. `forward` is their pipeline, literally; `fused` is the same function with everything
between backbone and LeakyReLU as one affine map per level. Several methods share it, which differ
in the training alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from flawline.options import option
from flawline.train.backbones import create_backbone
from flawline.train.blocks import fused as rewrites
from flawline.train.blocks.discriminator import (
    NEGATIVE_SLOPE,
    build_discriminator,
    fold_head,
    initialise_head,
)
from flawline.train.blocks.fused import FusedMethod, build_fused, fp32
from flawline.train.blocks.patches import aggregate, smoothed_map
from flawline.train.method import Method, MethodSettings

SIGMA = 4.0  # of the Gaussian over the anomaly map, in pixels of the input


@dataclass(frozen=True)
class AdaptedSettings(MethodSettings):
    """The settings of the graph; none is a flag. The defaults are the published values."""

    level_dim: int = option(1536, "values per patch and level after pooling")
    target_dim: int = option(1536, "feature dimensions of a patch")
    hidden: int = option(1024, "hidden units of the discriminator")


class AdaptedPatches(Method):
    """Patch features, a linear adapter, and a discriminator whose logits are positive if good."""

    settings: AdaptedSettings

    def __init__(self, settings: AdaptedSettings) -> None:
        super().__init__(settings)
        self.backbone = create_backbone(settings.backbone, (2, 3))
        self.adapter = nn.Linear(settings.target_dim, settings.target_dim)
        self.discriminator = build_discriminator(settings.target_dim, settings.hidden)

    # ------------------------------------------------------------ the literal pipeline

    def features(self, image: Tensor) -> Tensor:
        """Compute patch features [N, h, w, D2] of images, uint8 BGR [N, H, W, 3]."""
        return self.embed(*self.backbone.extract(image))

    def embed(self, level2: Tensor, level3: Tensor) -> Tensor:
        """Aggregate both levels to patch features [N, h, w, D2] (section 3.1 of the paper)."""
        return aggregate(level2, level3, self.settings.level_dim, self.settings.target_dim)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.judge(self.features(image))

    def judge(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] from patch features [N, h, w, D2]."""
        n, h, w, d = features.shape
        logits = self.discriminator(self.adapter(features.view(-1, d)))
        patch_score = -logits.view(n, h, w)
        anomaly_map = smoothed_map(patch_score, self.settings.size, SIGMA)
        return patch_score.amax((1, 2)), anomaly_map

    def flat_features(self, image: Tensor) -> Tensor:
        """Compute patch features [N, positions, D2] of images, uint8 BGR [N, H, W, 3]."""
        return self.features(image).flatten(1, 2)

    def initialise(self, seed: int) -> None:
        """Draw the weights of adapter and discriminator."""
        initialise_head(self.adapter, self.discriminator, seed)

    # ------------------------------------------------------------ the exported form

    def fused(self) -> nn.Module:
        return build_fused(self, FusedAdaptedPatches)


class FusedAdaptedPatches(FusedMethod):
    """h = |w| (Wh2 (T2 * L2) + Up(Wh3 (T3 * L3)) + b); patch score = -sign(w) . LeakyReLU(h).

    Unfold, both pools, resize, adapter, first discriminator layer and BatchNorm are linear. Pooling
    acts on channels and taps, resizing on positions, so they commute, and both products run on
    their own level's grid. LeakyReLU is positively homogeneous, so the last layer's weights move
    into the first and leave a signed sum, whose terms have one scale, which suits INT8.
    """

    def __init__(self, method: AdaptedPatches) -> None:
        super().__init__(method)
        settings = method.settings
        weight, bias, sign = fold_head(method.adapter, method.discriminator)
        kernels = rewrites.patch_stencils(
            method.backbone.channels, settings.level_dim, settings.target_dim
        )
        self.stencils = nn.ModuleList()
        self.heads = nn.ModuleList()
        for kernel, level_bias in zip(kernels, (bias, None), strict=True):
            used = kernel.flatten(1).abs().sum(1) > 0
            self.stencils.append(rewrites.grouped_convolution(kernel[used]))
            self.heads.append(rewrites.pointwise(weight[:, used], level_bias))
        grid2, grid3 = method.backbone.grids(*settings.size)
        self.upsample = rewrites.Upsample(grid3, grid2)
        # The sum over a thousand hidden units, and what is computed from it, need FP32.
        self.tail = fp32(rewrites.pointwise(-sign[None]))
        self.smooth = fp32(rewrites.SmoothUpsample(grid2, settings.size, SIGMA))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        level2, level3 = levels
        fine = self.heads[0](self.stencils[0](level2))
        coarse = self.heads[1](self.stencils[1](level3))
        # In place: the hidden map is the largest tensor of the head, and exists once.
        hidden = F.leaky_relu_(fine.add_(self.upsample(coarse)), NEGATIVE_SLOPE)
        patch_score = self.tail(hidden).squeeze(1)
        return patch_score.amax((1, 2)), self.smooth(patch_score)
