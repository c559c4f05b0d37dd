"""Patch features and their maps, literally as published, and one pass over the images.

The aggregation is that of Roth et al., "Towards total recall in industrial anomaly detection", CVPR
2022.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from flawline.os_errors import reason_of
from flawline.runtime.image import Image
from flawline.runtime.large_array import allocate
from flawline.train import TrainError
from flawline.train.backbones.base import Backbone
from flawline.train.progress import Progress


def patch_features(backbone: Backbone, image: Tensor, level_dim: int, target_dim: int) -> Tensor:
    """Compute patch features [N, h, w, target_dim] of images, uint8 BGR [N, H, W, 3].

    They lie on the grid of the first of the backbone's two levels.
    """
    level2, level3 = backbone.extract(image)
    return aggregate(level2, level3, level_dim, target_dim)


def aggregate(level2: Tensor, level3: Tensor, level_dim: int, target_dim: int) -> Tensor:
    """Aggregate 3x3 patches of two levels to [N, h, w, target_dim] on the grid of the first.

    The patches of each level are pooled to `level_dim`, then both together to `target_dim`.
    """
    n, _, h, w = level2.shape
    patches2 = F.unfold(level2, 3, padding=1).transpose(1, 2)  # [N, hw, 9 C2], index 9c + 3ky + kx
    # layer3 is unfolded on its own grid; its 9 C3 planes are resized afterwards.
    planes3 = F.unfold(level3, 3, padding=1).view(n, -1, *level3.shape[2:])  # [N, 9 C3, h/2, w/2]
    planes3 = F.interpolate(planes3, size=(h, w), mode="bilinear", align_corners=False)
    patches3 = planes3.flatten(2).transpose(1, 2)  # [N, hw, 9 C3]
    pooled2 = F.adaptive_avg_pool1d(patches2, level_dim)
    pooled3 = F.adaptive_avg_pool1d(patches3, level_dim)
    both = F.adaptive_avg_pool1d(torch.cat([pooled2, pooled3], 2), target_dim)
    return both.view(n, h, w, -1)


def smoothed_map(patch_score: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Upsample patch scores [N, h, w] bilinearly to [N, H, W], then smooth them by a Gaussian."""
    planes = F.interpolate(patch_score[:, None], size=size, mode="bilinear", align_corners=False)
    return gaussian(planes, sigma)[:, 0]


def gaussian(planes: Tensor, sigma: float) -> Tensor:
    """Filter planes [N, 1, H, W] as scipy.ndimage.gaussian_filter(sigma, mode="reflect") does."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=planes.dtype, device=planes.device)
    taps = torch.exp(-0.5 * (offsets / sigma) ** 2)
    taps = taps / taps.sum()
    planes = F.conv2d(_reflected(planes, 2, radius), taps.view(1, 1, -1, 1))
    return F.conv2d(_reflected(planes, 3, radius), taps.view(1, 1, 1, -1))


def _reflected(planes: Tensor, axis: int, radius: int) -> Tensor:
    """Pad an axis on both sides with its reflection, in which the sample at the edge is doubled."""
    length = planes.shape[axis]
    before = planes.narrow(axis, 0, radius).flip(axis)
    after = planes.narrow(axis, length - radius, radius).flip(axis)
    return torch.cat([before, planes, after], axis)


@torch.inference_mode()
def collect_features(
    images: Sequence[Image],
    compute: Callable[[Tensor], Tensor],
    device: torch.device,
    folder: str,
    progress: Progress,
) -> npt.NDArray[np.float32]:
    """Compute the features of every image one at a time: float32 [n, ...].

    compute: maps images uint8 [N, H, W, 3] on `device` to features [N, ...].
    folder: holds the file that a large array is mapped from; it must exist as long as the array is
    used. Raises TrainError where the disk has no space for it.
    """
    features: npt.NDArray[np.float32] | None = None
    for index, image in enumerate(images):
        batch = torch.from_numpy(np.asarray(image))[None].to(device)
        computed = compute(batch).cpu().numpy()
        if features is None:
            features = allocate_features((len(images), *computed.shape[1:]), folder)
        features[index] = computed[0]
        progress("features", index + 1, len(images))
    assert features is not None
    return features


def allocate_features(shape: tuple[int, ...], folder: str) -> npt.NDArray[np.float32]:
    """Return an array for features; a large one is mapped from a file in `folder`.

    Raises TrainError where the disk has no space for it.
    """
    try:
        return allocate(shape, folder)
    except OSError as error:
        size = 4 * int(np.prod(shape))
        raise TrainError(
            f"features in {Path(folder).parent}: no space for {size / 2**20:.0f} MiB "
            f"({reason_of(error)}); set TMPDIR to a folder with more space, or reduce --size"
        ) from error
