"""PatchCore: the distance of every patch to the nearest of a small bank of good patches.

Roth et al., "Towards total recall in industrial anomaly detection", CVPR 2022, with the constants of the authors' code.
`forward` is their pipeline, literally (distances are not squared, as in the paper); `fused` aggregates patches with one
3x3 stencil per level and searches the bank with one matrix product.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flawline.runtime.image import Image
from flawline.train import TrainError
from flawline.train.backbones.resnet import MEAN_RGB, STD_RGB, Trunk
from flawline.train.blocks import coreset
from flawline.train.blocks import fused as fuse
from flawline.train.blocks import memory_bank as bank
from flawline.train.blocks.patches import collect, one_pass, patch_features, smoothed_map
from flawline.train.method import Budget, Method, Save
from flawline.train.progress import Progress

DEFAULT_CORESET = 0.01
SIGMA = 4.0  # of the Gaussian over the anomaly map, in pixels of the input


class PatchCore(Method):
    """`level_dim` and `target_dim` are the paper's pooled sizes. `coreset` is how much of all patches is kept: a share
    up to 1, a number of rows above; None keeps 1 %, or what the budgets allow. `budget_ms` is the time that searching
    the bank may add to a frame on this machine's ONNX Runtime, `budget_mb` what the bank may add to the exported file.
    `reweight` is the paper's b, 0 for none (as the authors' code).
    """

    name: ClassVar[str] = "patchcore"
    fp32_islands: tuple[str, ...] = ("/nearest/distance", "/score", "/smooth")
    options: ClassVar[dict[str, tuple[Callable[[str], Any], str]]] = {
        "--coreset": (
            float,
            "how much of all patches the bank keeps: a share up to 1, rows above; default 0.01",
        ),
        "--budget-ms": (
            float,
            "the bank may add so much time to a frame, measured on this machine's ONNX Runtime",
        ),
        "--budget-mb": (float, "the bank may add so much to the exported file"),
        "--reweight": (
            int,
            "neighbours that re-weight the image score, 9 in the paper's tables; default 0, none",
        ),
        "--target-dim": (int, "feature dimensions; fewer are faster"),
    }

    def __init__(
        self,
        backbone: str,
        geometry: dict[str, Any],
        level_dim: int,
        target_dim: int,
        coreset: float | None = None,
        budget_ms: float | None = None,
        budget_mb: float | None = None,
        reweight: int = 0,
    ) -> None:
        super().__init__(
            backbone=backbone,
            geometry=geometry,
            level_dim=level_dim,
            target_dim=target_dim,
            coreset=coreset,
            budget_ms=budget_ms,
            budget_mb=budget_mb,
            reweight=reweight,
        )
        _check(target_dim, coreset, budget_ms, budget_mb, reweight)
        self.level_dim, self.target_dim = level_dim, target_dim
        self.coreset, self.budget_ms, self.budget_mb, self.reweight = (
            coreset,
            budget_ms,
            budget_mb,
            reweight,
        )
        self.notes: list[str] = []  # what `fit` chose, for the user
        self.trunk = Trunk(backbone).requires_grad_(False)
        self.bank = bank.Bank(target_dim, reweight)

    @classmethod
    def defaults(cls, backbone: str) -> dict[str, Any]:
        if backbone in ("resnet18", "resnet34"):
            # 256 is to their 128 and 256 channels what the published 1024 is to 512 and 1024: the same stencil.
            geometry = {"kind": "stretch", "height": 256, "width": 256}
            return {"backbone": backbone, "geometry": geometry, "level_dim": 256, "target_dim": 256}
        geometry = {"kind": "shorter-crop", "height": 224, "width": 224, "shorter": 256}
        return {"backbone": backbone, "geometry": geometry, "level_dim": 1024, "target_dim": 1024}

    @classmethod
    def steps(cls, backbone: str, images: int, epochs: int | None) -> int:
        return 1  # one pass, then a closed form

    def features(self, image: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] BGR to patch features [N, h, w, D] (section 3.1 of the paper)."""
        return patch_features(self.trunk, image, self.level_dim, self.target_dim)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(image)
        n, h, w, d = features.shape
        distance, winner = self.bank(features.view(-1, d))
        score, worst = distance.view(n, -1).max(1)
        if self.reweight:
            q = features.view(n, h * w, d)[torch.arange(n), worst]
            score = score * self.bank.weight(q, winner.view(n, -1)[torch.arange(n), worst])
        return score, smoothed_map(
            distance.view(n, h, w), (self.geometry.height, self.geometry.width), SIGMA
        )

    def fit(
        self,
        images: Sequence[Image],
        budget: Budget,
        seed: int,
        progress: Progress,
        save: Save,
        resumed: dict[str, Any] | None,
    ) -> int:
        """One pass over the images, then the coreset; nothing is resumed, as nothing half-way is of use."""
        progress = one_pass(self.name, budget, progress)
        device = self.trunk.conv1.weight.device
        self.eval()
        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            features = collect(images, self.features, device, folder, progress)  # [n, h, w, D]
            flat = features.reshape(-1, self.target_dim)
            rows = self._rows(len(flat), features.shape[1:3])
            kept = coreset.greedy_k_centre(
                coreset.project(flat, seed, device), rows, seed, progress
            )
            self.bank.fill(torch.from_numpy(flat[kept.numpy()]), kept)
        return budget.steps

    def _rows(self, patches: int, grid: tuple[int, int]) -> int:
        """How many rows the bank gets: what was asked for, and no more than any budget allows; says so in `notes`."""
        limits = {f"all {patches} patches": patches}
        unlimited = self.budget_ms is None and self.budget_mb is None
        if (
            share := DEFAULT_CORESET if self.coreset is None and unlimited else self.coreset
        ) is not None:
            rows = int(share) if share > 1 else max(1, int(share * patches))
            limits[f"coreset {share:g}"] = rows
        if self.budget_mb is not None:
            limits[f"--budget-mb {self.budget_mb:g}"] = bank.rows_for_mb(
                self.budget_mb, self.target_dim, self.reweight
            )
        took = ""
        if self.budget_ms is not None:
            most = min(limits.values())
            rows, milliseconds = bank.rows_for_ms(self.budget_ms, self.target_dim, grid, most)
            took = f"; searching them was measured here at {milliseconds:.1f} ms a frame"
            if rows < most:
                limits[f"--budget-ms {self.budget_ms:g}"] = rows
        reason = min(limits, key=lambda name: limits[name])
        rows = limits[reason]
        size = rows * bank.bytes_of_row(self.target_dim, self.reweight) / 1e6
        self.notes = [f"bank: {rows} of {patches} patches ({reason}), {size:.1f} MB{took}"]
        return rows

    def fused(self) -> nn.Module:
        if not len(self.bank.vectors):
            raise TrainError("patchcore has no bank yet; train it first with python -m train.fit")
        return _Fused(copy.deepcopy(self).double()).to(self.trunk.conv1.weight.dtype).eval()


def _check(
    target_dim: int,
    coreset: float | None,
    budget_ms: float | None,
    budget_mb: float | None,
    reweight: int,
) -> None:
    positive = {
        "target-dim": target_dim,
        "coreset": coreset,
        "budget-ms": budget_ms,
        "budget-mb": budget_mb,
    }
    for name, value in positive.items():
        if value is not None and not value > 0:
            raise TrainError(f"--{name} {value:g} is not above 0")
    if coreset is not None and coreset > 1 and coreset != int(coreset):
        raise TrainError(
            f"--coreset {coreset:g} is neither a share (at most 1) nor a number of rows"
        )
    if reweight < 0 or reweight == 1:
        raise TrainError(
            f"--reweight {reweight}: a row is its own first neighbour; take 0 (none), or 2 and more"
        )


class _Fused(nn.Module):
    """Stencils that subtract the bank's mean, resize of layer3's, one product with the bank, smoothing as products."""

    def __init__(self, net: PatchCore) -> None:
        super().__init__()
        self.trunk = fuse.fold_batchnorm(net.trunk)
        self.input = fuse.FoldedInput(self.trunk.conv1, MEAN_RGB, STD_RGB)  # type: ignore[arg-type]
        size = (net.geometry.height, net.geometry.width)
        grid2, grid3 = ((-(-size[0] // stride), -(-size[1] // stride)) for stride in (8, 16))
        mean = net.bank.vectors.mean(0)
        kernels = fuse.patch_stencils(net.trunk.channels, net.level_dim, net.target_dim)
        used = [kernel.flatten(1).abs().sum(1) > 0 for kernel in kernels]
        # A row with taps in both levels, which an odd target_dim makes, is a sum; else the levels stand side by side.
        self.added = bool((used[0] & used[1]).any())
        self.stencils = nn.ModuleList(
            _stencil(*((kernel, mean / 2) if self.added else (kernel[rows], mean[rows])))
            for kernel, rows in zip(kernels, used, strict=True)
        )
        self.upsample = fuse.Upsample(grid3, grid2)
        rows = bank.whole_blocks(net.bank.vectors - mean)
        self.nearest = bank.Nearest(rows, grid2)
        table = bank.whole_blocks(net.bank.neighbours)
        self.score = bank.Weight(rows, table) if net.reweight else _Largest()
        self.smooth = fuse.SmoothUpsample(grid2, size, SIGMA)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        level2, level3 = self.trunk(self.input(image))
        # The upsampling's weights sum to 1, so layer3's share of the mean may be subtracted before it.
        fine, coarse = self.stencils[0](level2), self.upsample(self.stencils[1](level3))
        features = fine + coarse if self.added else torch.cat([fine, coarse], 1)
        distance, winner = self.nearest(features)
        return self.score(features, distance, winner), self.smooth(distance)


def _stencil(kernel: Tensor, mean: Tensor) -> nn.Conv2d:
    conv = fuse.grouped_convolution(kernel)
    conv.bias = nn.Parameter(-mean)
    return conv


class _Largest(nn.Module):
    """The image score [N] without re-weighting: the largest patch distance [N, h, w]."""

    def forward(self, features: Tensor, distance: Tensor, winner: Tensor) -> Tensor:
        return distance.amax((1, 2))
