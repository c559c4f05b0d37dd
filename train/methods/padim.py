"""PaDiM: one Gaussian per position of the part; the Mahalanobis distance to it is the anomaly.

Defard et al., "PaDiM: a patch distribution modeling framework for anomaly detection and localization", ICPR 2021.
`forward` evaluates the quadratic form with the inverse covariance, literally; `fused` whitens all positions in one
batched product.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.runtime.image import Image
from flawline.train import TrainError
from flawline.train.backbones.resnet import MEAN_RGB, STD_RGB, Trunk
from flawline.train.blocks import fused as fuse
from flawline.train.blocks.patches import collect, one_pass, smoothed_map
from flawline.train.method import Budget, Method, Save
from flawline.train.progress import Progress

RIDGE = 0.01  # added to every covariance's diagonal
SIGMA = 4.0  # of the Gaussian over the anomaly map, in pixels of the input
LARGEST = 1_900_000_000  # bytes of the matrices: what protobuf holds, less the backbone
TOGETHER = 16  # images whose outer products are summed in one product


class PaDiM(Method):
    """`channels` of the three levels' are drawn at random by the seed of `fit`. `stride` is the grid: 4 is layer1's, as
    published, 8 is layer2's, which has a quarter of the positions. The model holds one channels x channels matrix per
    position, so both decide its size.
    """

    name: ClassVar[str] = "padim"
    fp32_islands: tuple[str, ...] = ("/centre", "/distance", "/smooth", "/score")
    options: ClassVar[dict[str, tuple[Callable[[str], Any], str]]] = {
        "--channels": (
            int,
            "random channels whose covariance is kept; the size grows with the square",
        ),
        "--stride": (int, "pixels between positions: 4 as published, 8 for a quarter of the size"),
    }

    def __init__(self, backbone: str, geometry: dict[str, Any], channels: int, stride: int) -> None:
        super().__init__(backbone=backbone, geometry=geometry, channels=channels, stride=stride)
        self.trunk = Trunk(backbone, (1, 2, 3)).requires_grad_(False)
        levels = self.trunk.channels
        if stride not in (4, 8):
            raise TrainError(f"--stride {stride} is neither 4 (layer1's grid) nor 8 (layer2's)")
        if not 1 <= channels <= sum(levels):
            raise TrainError(
                f"--channels {channels} is not from 1 to {sum(levels)}, which {backbone} has"
            )
        self.channels, self.stride, self.levels = channels, stride, levels
        self.grid = (-(-self.geometry.height // stride), -(-self.geometry.width // stride))
        self.notes: list[str] = []  # what `fit` made, for the user
        positions = self.grid[0] * self.grid[1]
        if (size := 4 * positions * channels**2) > LARGEST:
            raise TrainError(
                f"{channels} channels at {positions} positions are {size / 1e9:.1f} GB, and an ONNX file ends at 2; "
                f"take fewer --channels, --stride 8 or a smaller --size"
            )
        self.register_buffer("chosen", torch.zeros(channels, dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(positions, channels))
        self.register_buffer("precision", torch.zeros(positions, channels, channels))

    chosen: Tensor
    mean: Tensor
    precision: Tensor

    @classmethod
    def defaults(cls, backbone: str) -> dict[str, Any]:
        if backbone in ("resnet18", "resnet34"):
            # As published, 100 channels on layer1's grid, it would be 177 MB, and no more accurate.
            geometry = {"kind": "stretch", "height": 256, "width": 256}
            return {"backbone": backbone, "geometry": geometry, "channels": 56, "stride": 8}
        # As published, 550 channels on layer1's grid, it would be 3.9 GB.
        geometry = {"kind": "shorter-crop", "height": 224, "width": 224, "shorter": 256}
        return {"backbone": backbone, "geometry": geometry, "channels": 100, "stride": 8}

    @classmethod
    def steps(cls, backbone: str, images: int, epochs: int | None) -> int:
        return 1  # one pass, then a closed form

    def features(self, image: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] BGR to the chosen channels [N, P, d]; levels are brought to the grid by replication."""
        found = self.trunk(self.trunk.normalise(image))
        levels = [F.interpolate(level, size=self.grid, mode="nearest") for level in found]
        return torch.cat(levels, 1)[:, self.chosen].flatten(2).transpose(1, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        offset = self.features(image) - self.mean
        distance = (
            torch.einsum("npi,pij,npj->np", offset, self.precision, offset).clamp(min=0).sqrt()
        )
        size = (self.geometry.height, self.geometry.width)
        heat = smoothed_map(distance.view(-1, *self.grid), size, SIGMA)
        return heat.amax((1, 2)), heat

    @torch.inference_mode()
    def fit(
        self,
        images: Sequence[Image],
        budget: Budget,
        seed: int,
        progress: Progress,
        save: Save,
        resumed: dict[str, Any] | None,
    ) -> int:
        """One pass over the images; nothing is resumed, as nothing half-way is of use."""
        progress = one_pass(self.name, budget, progress)
        self.eval()
        drawn = torch.randperm(sum(self.levels), generator=torch.Generator().manual_seed(seed))[
            : self.channels
        ]
        self.chosen.copy_(drawn.sort().values)
        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            features = collect(
                images, self.features, self.mean.device, folder, progress
            )  # [n, P, d]
            mean, covariance = gaussians(features, progress)
        self.mean.copy_(mean)
        self.precision.copy_(torch.cholesky_inverse(torch.linalg.cholesky(covariance)))
        size = 4 * (self.precision.numel() + self.mean.numel()) / 1e6
        self.notes = [
            f"{len(mean)} Gaussians of {self.channels} channels: {size:.1f} MB of the exported file"
        ]
        return budget.steps

    def fused(self) -> nn.Module:
        if not self.precision.any():
            raise TrainError("padim has no Gaussians yet; train it first with python -m train.fit")
        return _Fused(copy.deepcopy(self).double()).to(self.mean.dtype).eval()


def gaussians(features: Any, progress: Progress) -> tuple[Tensor, Tensor]:
    """Mean [P, d] and covariance plus ridge [P, d, d] over the images of features [n, P, d], in float64."""
    n, positions, d = features.shape
    mean = torch.from_numpy(features.mean(0, dtype="float64"))
    covariance = torch.zeros(positions, d, d, dtype=torch.float64)
    for start in range(0, n, TOGETHER):
        offsets = (
            torch.from_numpy(features[start : start + TOGETHER]).double().sub_(mean).transpose(0, 1)
        )  # [P, k, d]
        covariance.baddbmm_(offsets.transpose(1, 2), offsets)
        progress("covariances", min(start + TOGETHER, n), n)
    return mean, covariance.div_(max(n - 1, 1)).add_(RIDGE * torch.eye(d, dtype=torch.float64))


class _Fused(nn.Module):
    """Channels are picked on their own grids before they are replicated; d = |(e - mean) L| with LL' = precision."""

    def __init__(self, net: PaDiM) -> None:
        super().__init__()
        self.trunk = fuse.fold_batchnorm(net.trunk)
        self.input = fuse.FoldedInput(self.trunk.conv1, MEAN_RGB, STD_RGB)  # type: ignore[arg-type]
        size = (net.geometry.height, net.geometry.width)
        first, self.levels, self.used = 0, nn.ModuleList(), []
        for i, (count, stride) in enumerate(zip(net.levels, (4, 8, 16), strict=True)):
            mine = net.chosen[(net.chosen >= first) & (net.chosen < first + count)] - first
            if len(mine):  # a level of which the draw took nothing is not read
                self.used.append(i)
                self.levels.append(
                    _Level(mine, (-(-size[0] // stride), -(-size[1] // stride)), net.grid)
                )
            first += count
        self.centre = _Centre(net.mean)
        self.whiten = _Whiten(net.precision)
        self.distance = _Norm(net.grid)
        self.smooth = fuse.SmoothUpsample(net.grid, size, SIGMA)
        self.score = fuse.Largest()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        found = self.trunk(self.input(image))
        picked = [level(found[i]) for level, i in zip(self.levels, self.used, strict=True)]
        features = torch.cat(picked, 1)  # [N, d, P]
        heat = self.smooth(self.distance(self.whiten(self.centre(features))))
        return self.score(heat), heat


class _Level(nn.Module):
    """Some channels [k] of a level [N, C, h, w], brought to the grid by replication: [N, k, P]."""

    channels: Tensor
    source: Tensor

    def __init__(self, channels: Tensor, own: tuple[int, int], grid: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("channels", channels)
        self.count, self.positions, self.same = len(channels), own[0] * own[1], own == grid
        numbers = torch.arange(own[0] * own[1], dtype=torch.float64).view(1, 1, *own)
        self.register_buffer(
            "source", F.interpolate(numbers, size=grid, mode="nearest").flatten().long()
        )

    def forward(self, x: Tensor) -> Tensor:
        picked = x.index_select(1, self.channels).view(-1, self.count, self.positions)
        return picked if self.same else picked.index_select(2, self.source)


class _Centre(nn.Module):
    """[N, d, P] less the mean, as [P, N, d]: the product that follows has positions as its batch."""

    mean: Tensor

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.T.contiguous())

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean).permute(2, 0, 1)


class _Whiten(nn.Module):
    """[P, N, d] to rows [P, N, d] whose squared norms are the squared Mahalanobis distances."""

    matrix: Tensor

    def __init__(self, precision: Tensor) -> None:
        super().__init__()
        # The factor's entries span half the decades that the precision's do.
        self.register_buffer("matrix", torch.linalg.cholesky(precision))

    def forward(self, offset: Tensor) -> Tensor:
        return offset @ self.matrix


class _Norm(nn.Module):
    """Whitened [P, N, d] to distances [N, h, w]."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, whitened: Tensor) -> Tensor:
        distance: Tensor = torch.linalg.vector_norm(whitened, dim=2)  # [P, N]
        return distance.T.reshape(-1, *self.grid)
