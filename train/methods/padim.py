"""PaDiM: one Gaussian per position of the part; the distance to it is the anomaly score.

Defard et al., "PaDiM: a patch distribution modeling framework for anomaly detection and
localization", ICPR 2021. `forward` evaluates the quadratic form with the inverse covariance,
literally; `fused` whitens all positions in one batched product.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.commands import command_line
from flawline.options import option
from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.backbones import backbone_facts, create_backbone
from flawline.train.blocks import fused as rewrites
from flawline.train.blocks.fused import FusedMethod, Size, build_fused, fp32
from flawline.train.blocks.patches import collect_features, smoothed_map
from flawline.train.loop import raise_at_deadline
from flawline.train.method import Fit, Method, MethodSettings, Teachable
from flawline.train.progress import Progress

RIDGE = 0.01  # added to the diagonal of every covariance
SIGMA = 4.0  # of the Gaussian over the anomaly map, in pixels of the input
# Bytes of the matrices: what protobuf can hold (2 GB), less the backbone.
LARGEST_MATRICES = 1_900_000_000
STRIDES = (4, 8)  # of the grid
COVARIANCE_BATCH = 16  # images whose outer products are summed in one matrix product


@dataclass(frozen=True)
class PaDiMSettings(MethodSettings):
    """The settings of PaDiM: how many channels, and on which grid."""

    channels: int = option(
        100,
        "random channels of the levels that the Gaussians describe; the model holds one channels x "
        "channels matrix per position",
        flag=True,
    )
    stride: int = option(
        8, "pixels between positions: 4 as published, 8 for a quarter of the size", flag=True
    )

    def __post_init__(self) -> None:
        if self.stride not in STRIDES:
            raise TrainError(
                f"--stride {self.stride} is neither 4 (layer1's grid) nor 8 (layer2's)"
            )


class PaDiM(Method):
    """PaDiM on random channels of three levels, which the seed of `fit` draws."""

    name: ClassVar[str] = "padim"
    Settings = PaDiMSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo", "elpv_mono")

    settings: PaDiMSettings
    chosen: Tensor  # indices of the drawn channels [d]
    mean: Tensor  # [P, d]
    inverse_covariance: Tensor  # [P, d, d]

    def __init__(self, settings: PaDiMSettings) -> None:
        super().__init__(settings)
        self.backbone = create_backbone(settings.backbone, (1, 2, 3))
        height, width = settings.size
        self.grid = (-(-height // settings.stride), -(-width // settings.stride))
        channels = settings.channels
        positions = self.grid[0] * self.grid[1]
        _check_channels(channels, sum(self.backbone.channels), settings.backbone)
        _check_matrices(channels, positions)
        self.register_buffer("chosen", torch.zeros(channels, dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(positions, channels))
        self.register_buffer("inverse_covariance", torch.zeros(positions, channels, channels))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Older checkpoints have the statistical name of this matrix.
        old = state_dict.pop(f"{prefix}precision", None)
        if old is not None:
            state_dict[f"{prefix}inverse_covariance"] = old
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @classmethod
    def settings_for(cls, backbone: str) -> PaDiMSettings:
        if backbone_facts(backbone).light:
            # As published, 100 channels on layer1's grid, it would be 177 MB, and no more accurate.
            return PaDiMSettings(backbone, Geometry("stretch", 256, 256), channels=56)
        # As published, 550 channels on layer1's grid, it would be 3.9 GB.
        return PaDiMSettings(backbone, Geometry("shorter-crop", 224, 224, 256), channels=100)

    def features(self, image: Tensor) -> Tensor:
        """Compute the chosen channels [N, P, d] of images, uint8 BGR [N, H, W, 3].

        Levels are brought to the grid by replication.
        """
        resized = []
        for level in self.backbone.extract(image):
            resized.append(F.interpolate(level, size=self.grid, mode="nearest"))
        return torch.cat(resized, 1)[:, self.chosen].flatten(2).transpose(1, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        offset = self.features(image) - self.mean
        squared = torch.einsum("npi,pij,npj->np", offset, self.inverse_covariance, offset)
        distance = squared.clamp(min=0).sqrt().view(-1, *self.grid)
        anomaly_map = smoothed_map(distance, self.settings.size, SIGMA)
        return anomaly_map.amax((1, 2)), anomaly_map

    def fit(self, fit: Fit) -> int:
        """Collect features in one pass, then estimate the Gaussians; there is nothing to resume."""
        self.fit_gaussians(fit, raise_at_deadline(fit, self.name))
        return fit.steps

    @torch.inference_mode()
    def fit_gaussians(self, fit: Fit, progress: Progress) -> None:
        """Estimate the Gaussians of the features of all images, and add a note about their size."""
        self.eval()
        generator = torch.Generator().manual_seed(fit.seed)
        drawn = torch.randperm(sum(self.backbone.channels), generator=generator)
        self.chosen.copy_(drawn[: self.settings.channels].sort().values)
        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            features = collect_features(fit.images, self.features, self.device, folder, progress)
            mean, covariance = gaussians(features, progress)
        self.mean.copy_(mean)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        self.inverse_covariance.copy_(inverse)
        size = 4 * (self.inverse_covariance.numel() + self.mean.numel()) / 1e6
        fit.notes.append(
            f"{len(mean)} Gaussians of {self.settings.channels} channels: {size:.1f} MB of the "
            "exported file"
        )

    def teaching(self) -> Teachable:
        return Teachable("centre", "distance", {"ridge": RIDGE})

    def fused(self) -> nn.Module:
        if not self.inverse_covariance.any():
            raise TrainError(
                f"{self.name} has no Gaussians yet; train it first: "
                f"{command_line('train', '--data', 'DATA')}"
            )
        return build_fused(self, FusedPaDiM)


def _check_channels(channels: int, available: int, backbone: str) -> None:
    if not 1 <= channels <= available:
        raise TrainError(
            f"--channels {channels} is not from 1 to {available}, which {backbone} has"
        )


def _check_matrices(channels: int, positions: int) -> None:
    size = 4 * positions * channels**2
    if size > LARGEST_MATRICES:
        raise TrainError(
            f"{channels} channels at {positions} positions are {size / 1e9:.1f} GB, and an ONNX "
            "file ends at 2; take fewer --channels, --stride 8 or a smaller --size"
        )


def gaussians(features: npt.NDArray[Any], progress: Progress) -> tuple[Tensor, Tensor]:
    """Estimate mean [P, d] and covariance plus ridge [P, d, d], float64, of features [n, P, d]."""
    n, positions, d = features.shape
    mean = torch.from_numpy(features.mean(0, dtype=np.float64))
    covariance = torch.zeros(positions, d, d, dtype=torch.float64)
    for start in range(0, n, COVARIANCE_BATCH):
        stop = min(start + COVARIANCE_BATCH, n)
        offsets = torch.from_numpy(features[start:stop]).double() - mean  # [k, P, d]
        by_position = offsets.transpose(0, 1)
        covariance.baddbmm_(by_position.transpose(1, 2), by_position)
        progress("covariances", stop, n)
    covariance.div_(max(n - 1, 1))
    covariance.add_(RIDGE * torch.eye(d, dtype=torch.float64))
    return mean, covariance


class FusedPaDiM(FusedMethod):
    """Distances as norms of whitened offsets: d = |(e - mean) L| with L L' = inverse covariance.

    Channels are selected on the grids of their levels, before these are replicated.
    """

    def __init__(self, method: PaDiM) -> None:
        super().__init__(method)
        size = method.settings.size
        grids = method.backbone.grids(*size)
        self.levels = nn.ModuleList()
        self.used: list[int] = []
        first = 0
        for index, count in enumerate(method.backbone.channels):
            inside = (method.chosen >= first) & (method.chosen < first + count)
            channels = method.chosen[inside] - first
            # A level none of whose channels were drawn is not read.
            if len(channels):
                self.used.append(index)
                self.levels.append(_Level(channels, grids[index], method.grid))
            first += count
        self.centre = fp32(_Centre(method.mean))
        self.whiten = _Whiten(method.inverse_covariance)
        self.distance = fp32(_Norm(method.grid))
        self.smooth = fp32(rewrites.SmoothUpsample(method.grid, size, SIGMA))
        self.score = fp32(rewrites.Largest())

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        selected = []
        for select, index in zip(self.levels, self.used, strict=True):
            selected.append(select(levels[index]))
        features = torch.cat(selected, 1)  # [N, d, P]
        distance = self.distance(self.whiten(self.centre(features)))
        anomaly_map = self.smooth(distance)
        return self.score(anomaly_map), anomaly_map


class _Level(nn.Module):
    """Selects channels [k] of a level [N, C, h, w] and replicates them on the grid: [N, k, P]."""

    channels: Tensor
    source: Tensor

    def __init__(self, channels: Tensor, level_grid: Size, grid: Size) -> None:
        super().__init__()
        self.register_buffer("channels", channels)
        self.count = len(channels)
        self.positions = level_grid[0] * level_grid[1]
        self.same_grid = level_grid == grid
        numbers = torch.arange(self.positions, dtype=torch.float64).view(1, 1, *level_grid)
        replicated = F.interpolate(numbers, size=grid, mode="nearest")
        self.register_buffer("source", replicated.flatten().long())

    def forward(self, x: Tensor) -> Tensor:
        selected = x.index_select(1, self.channels).view(-1, self.count, self.positions)
        if self.same_grid:
            return selected
        return selected.index_select(2, self.source)


class _Centre(nn.Module):
    """Subtracts the mean from [N, d, P]; returns [P, N, d], since positions are the next batch."""

    mean: Tensor

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.T.contiguous())

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean).permute(2, 0, 1)


class _Whiten(nn.Module):
    """Maps [P, N, d] to rows whose squared norms are the squared Mahalanobis distances."""

    matrix: Tensor

    def __init__(self, inverse_covariance: Tensor) -> None:
        super().__init__()
        # The entries of the factor span half as many powers of ten as those of the matrix itself.
        self.register_buffer("matrix", torch.linalg.cholesky(inverse_covariance))

    def forward(self, offset: Tensor) -> Tensor:
        return offset @ self.matrix


class _Norm(nn.Module):
    """Computes distances [N, h, w] from whitened rows [P, N, d]."""

    def __init__(self, grid: Size) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, whitened: Tensor) -> Tensor:
        distance: Tensor = torch.linalg.vector_norm(whitened, dim=2)  # [P, N]
        return distance.T.reshape(-1, *self.grid)
