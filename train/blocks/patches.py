"""What detectors on patch features share, literally as published: aggregation, smoothing, one pass over images.

The aggregation is that of Roth et al., "Towards total recall in industrial anomaly detection", CVPR 2022.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flawline.runtime.image import Image
from flawline.train import TrainError
from flawline.train.backbones.resnet import Trunk
from flawline.train.loop import deadline_of
from flawline.train.method import Budget
from flawline.train.progress import Progress

MEMORY_MAP_ABOVE = 2 << 30  # bytes of features


def patch_features(trunk: Trunk, image: Tensor, level_dim: int, target_dim: int) -> Tensor:
    """uint8 [N, H, W, 3] BGR to patch features [N, h, w, target_dim] on layer2's grid, literally as published."""
    level2, level3 = trunk(trunk.normalise(image))
    return aggregate(level2, level3, level_dim, target_dim)


def aggregate(level2: Tensor, level3: Tensor, level_dim: int, target_dim: int) -> Tensor:
    """3x3 patches of both levels, each pooled to `level_dim`, then together: [N, h, w, target_dim] on layer2's grid."""
    n, _, h, w = level2.shape
    patches2 = F.unfold(level2, 3, padding=1).transpose(1, 2)  # [N, hw, 9 C2], index 9c + 3ky + kx
    # layer3 is unfolded on its own grid; its 9 C3 planes are resized afterwards.
    planes3 = F.unfold(level3, 3, padding=1).view(n, -1, *level3.shape[2:])  # [N, 9 C3, h/2, w/2]
    planes3 = F.interpolate(planes3, size=(h, w), mode="bilinear", align_corners=False)
    patches3 = planes3.flatten(2).transpose(1, 2)  # [N, hw, 9 C3]
    levels = [F.adaptive_avg_pool1d(p, level_dim) for p in (patches2, patches3)]
    return F.adaptive_avg_pool1d(torch.cat(levels, 2), target_dim).view(n, h, w, -1)


def smoothed_map(patch_score: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """[N, h, w] to [N, H, W]: bilinear upsampling, then a Gaussian."""
    return gaussian(
        F.interpolate(patch_score[:, None], size=size, mode="bilinear", align_corners=False), sigma
    )[:, 0]


def gaussian(heat: Tensor, sigma: float) -> Tensor:
    """scipy.ndimage.gaussian_filter(sigma, mode="reflect") over [N, 1, H, W]: the edge sample is doubled."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=heat.dtype, device=heat.device)
    taps = torch.exp(-0.5 * (offsets / sigma) ** 2)
    taps = taps / taps.sum()
    for axis in (2, 3):
        n = heat.shape[axis]
        before, after = (
            heat.narrow(axis, 0, radius).flip(axis),
            heat.narrow(axis, n - radius, radius).flip(axis),
        )
        padded = torch.cat([before, heat, after], axis)
        heat = F.conv2d(padded, taps.view((1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)))
    return heat


@torch.inference_mode()
def collect(
    images: Sequence[Image],
    compute: Callable[[Tensor], Tensor],
    device: torch.device,
    folder: str,
    progress: Progress,
) -> Any:
    """`compute` of every image, float32 [n, ...]: in memory, or in a file of `folder` where it is large."""
    found: Any = None
    for i, image in enumerate(images):
        one = compute(torch.from_numpy(image)[None].to(device)).cpu().numpy()
        if found is None:
            shape = (len(images), *one.shape[1:])
            large = one.nbytes * len(images) > MEMORY_MAP_ABOVE
            found = (
                np.lib.format.open_memmap(f"{folder}/features.npy", "w+", np.float32, shape)
                if large
                else np.empty(shape, np.float32)
            )
        found[i] = one[0]
        progress("features", i + 1, len(images))
    return found


def one_pass(name: str, budget: Budget, progress: Progress) -> Progress:
    """`progress` that ends a fit which outlasts its minutes: a closed form has no half-way state to go on from."""
    deadline = deadline_of(budget)

    def checked(what: str, done: int, total: int) -> None:
        progress(what, done, total)
        if done < total and time.monotonic() > deadline:
            raise TrainError(
                f"--max-minutes {budget.max_minutes:g} ended at {what} {done} of {total}, and {name} is fitted in one "
                f"pass; allow more minutes"
            )

    return checked
