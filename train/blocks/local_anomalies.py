"""Patch features of images with synthetic anomalies, and which patches show one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from flawline.train.anomalies import Mask, SyntheticAnomalies
from flawline.train.loop import half_precision

Array = npt.NDArray[Any]


class LocalVectors(NamedTuple):
    """Vectors [n, D] of images with anomalies.

    positions: where on the grid each one lies, int64 [n]. anomalous: whether it shows an anomaly,
    bool [n].
    """

    features: Tensor
    positions: Tensor
    anomalous: Tensor


def anomalous_patches(masks: Sequence[Mask], grid: tuple[int, int]) -> Tensor:
    """Return which patches of a grid a mask touches, bool [N, h * w]; the masks are [H, W]."""
    planes = torch.from_numpy(np.stack(masks)).float()[:, None]
    return F.adaptive_max_pool2d(planes, grid).flatten(1) > 0


class LocalAnomalies:
    """Draws the vectors of a step from images with synthetic anomalies.

    anomalies: are drawn one after the other, `images` of them in each step.
    features_of: computes patch features [N, h * w, D] of images, uint8 [N, H, W, 3].
    grid: the height and width of the patch features.
    vectors: how many vectors a step draws in all, up to half of them with an anomaly; None for all.
    seed: of the positions.
    """

    def __init__(
        self,
        anomalies: SyntheticAnomalies,
        features_of: Callable[[Tensor], Tensor],
        grid: tuple[int, int],
        images: int,
        vectors: int | None,
        seed: int,
    ) -> None:
        self.anomalies = anomalies
        self.features_of = features_of
        self.grid = grid
        self.images = images
        self.vectors = vectors
        self.seed = seed

    @torch.no_grad()
    def of_step(self, step: int, device: torch.device) -> LocalVectors:
        """Return the vectors of a step, which is a function of the seed and the step alone."""
        images = []
        masks = []
        for draw in range(step * self.images, (step + 1) * self.images):
            _, synthetic, mask = self.anomalies.sample(draw)
            images.append(synthetic)
            masks.append(mask)
        anomalous = anomalous_patches(masks, self.grid)
        # Rounding to bfloat16 is far below the noise that the training adds to features.
        with half_precision(device):
            features = self.features_of(torch.from_numpy(np.stack(images)).to(device)).float()
        positions = self._positions(anomalous.numpy(), step)
        rows = torch.arange(len(images))[:, None]
        return LocalVectors(
            features[rows.to(device), positions.to(device)].flatten(0, 1),
            positions.flatten().to(device),
            anomalous[rows, positions].flatten().to(device),
        )

    def _positions(self, anomalous: Array, step: int) -> Tensor:
        """Choose positions of the images, int64 [images, n], given which are anomalous."""
        count = anomalous.shape[1]
        if self.vectors is None or self.vectors // len(anomalous) >= count:
            return torch.arange(count).expand(len(anomalous), count)
        of_each = max(1, self.vectors // len(anomalous))
        rng = np.random.default_rng((3, self.seed, step))
        chosen = []
        for row in anomalous:
            order = rng.permutation(count)
            bad = order[row[order]]
            # Up to half are anomalous; where there are few normal patches, more.
            few_normal = of_each - (count - len(bad))
            kept = bad[: max((of_each + 1) // 2, few_normal)]
            good = order[~row[order]][: of_each - len(kept)]
            chosen.append(np.concatenate([kept, good]))
        return torch.from_numpy(np.stack(chosen))
