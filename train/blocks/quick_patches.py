"""Patch features by a few convolutions, for trainings that compute them in every step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flawline.train.blocks import fused as rewrites
from flawline.train.blocks.adapted_patches import AdaptedPatches


class QuickPatches(nn.Module):
    """The patch features of a detector, forty times as fast as its literal pipeline.

    Unfolding and both poolings are one 3x3 convolution per level, in float32. It belongs to no
    checkpoint, because it follows from the settings.
    """

    def __init__(self, method: AdaptedPatches) -> None:
        super().__init__()
        settings = method.settings
        self.dimensions = settings.target_dim
        kernels = rewrites.patch_stencils(
            method.backbone.channels, settings.level_dim, settings.target_dim
        )
        self.used = []
        self.stencils = nn.ModuleList()
        for kernel in kernels:
            used = kernel.flatten(1).abs().sum(1) > 0
            self.used.append(used.nonzero()[:, 0])
            self.stencils.append(rewrites.grouped_convolution(kernel[used]))
        grid2, grid3 = method.backbone.grids(*settings.size)
        self.upsample = rewrites.Upsample(grid3, grid2)
        self.to(method.device, torch.float32)
        # In a list, so that it is no part of this module.
        self._backbones = [method.backbone]

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Compute patch features [N, positions, D2] of images, uint8 BGR [N, H, W, 3]."""
        level2, level3 = self._backbones[0].extract(image)
        parts = (self.stencils[0](level2), self.upsample(self.stencils[1](level3)))
        n, _, h, w = parts[0].shape
        features = torch.zeros(n, self.dimensions, h, w, device=level2.device)
        for used, part in zip(self.used, parts, strict=True):
            features[:, used.to(part.device)] += part
        return features.flatten(2).transpose(1, 2)
