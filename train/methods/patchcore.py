"""PatchCore: the distance of every patch to the nearest of a small bank of good patches.

Roth et al., "Towards total recall in industrial anomaly detection", CVPR 2022, with the constants
of the authors' code. `forward` is their pipeline, literally (distances are not squared, as in the
paper); `fused` aggregates patches with one 3x3 stencil per level and searches the bank with one
matrix product.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from flawline.commands import command_line
from flawline.options import option
from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.backbones import backbone_facts, create_backbone
from flawline.train.blocks import bank_budget
from flawline.train.blocks import fused as rewrites
from flawline.train.blocks.coreset import greedy_k_centre, project
from flawline.train.blocks.fused import FusedMethod, build_fused, fp32
from flawline.train.blocks.memory_bank import (
    BLOCK,
    Bank,
    NearestRow,
    Reweighting,
    rows_of_part,
    whole_blocks,
)
from flawline.train.blocks.patches import collect_features, patch_features, smoothed_map
from flawline.train.blocks.principal import components_of, principal_directions
from flawline.train.loop import raise_at_deadline
from flawline.train.method import Fit, Method, MethodSettings, Teachable, require_positive
from flawline.train.progress import Progress

DEFAULT_CORESET = 0.01
SIGMA = 4.0  # of the Gaussian over the anomaly map, in pixels of the input


@dataclass(frozen=True)
class PatchCoreSettings(MethodSettings):
    """The settings of PatchCore: the size of its features, of its bank, and the re-weighting."""

    level_dim: int = option(1024, "values per patch and level after pooling")
    target_dim: int = option(1024, "feature dimensions; fewer are faster", flag=True)
    components: int = option(
        0,
        "principal components of the features in which distances are measured; fewer are faster, "
        "and take less memory; default 0, all feature dimensions, as published",
        flag=True,
    )
    coreset: float | None = option(
        None,
        "how much of all patches the bank stores: a fraction up to 1, a number of rows above; "
        "default 0.01, or what the budgets allow",
        flag=True,
    )
    budget_ms: float | None = option(
        None,
        "time that searching the bank may add to a frame, measured on this machine's ONNX Runtime",
        flag=True,
    )
    budget_mb: float | None = option(
        None, "megabytes that the bank may add to the exported file", flag=True
    )
    reweight: int = option(
        0,
        "neighbours that re-weight the image score, 9 in the paper's tables; default 0, none, as "
        "in the authors' code",
        flag=True,
    )

    def __post_init__(self) -> None:
        require_positive("target-dim", self.target_dim)
        if not 0 <= self.components <= self.target_dim:
            raise TrainError(
                f"--components {self.components} is not a number of principal components; take 0 "
                f"(all dimensions), or 1 to {self.target_dim}, the dimensions of the features"
            )
        require_positive("coreset", self.coreset)
        require_positive("budget-ms", self.budget_ms)
        require_positive("budget-mb", self.budget_mb)
        rows = self.coreset
        if rows is not None and rows > 1 and rows != int(rows):
            raise TrainError(
                f"--coreset {rows:g} is neither a fraction (at most 1) nor a number of rows"
            )
        if self.reweight < 0 or self.reweight == 1:
            raise TrainError(
                f"--reweight {self.reweight}: a row is its own first neighbour; "
                "take 0 (none), or 2 and more"
            )


class PatchCore(Method):
    """PatchCore, with a bank whose size follows from a fraction, a number of rows or budgets."""

    name: ClassVar[str] = "patchcore"
    Settings = PatchCoreSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo", "elpv_mono")

    settings: PatchCoreSettings
    directions: Tensor | None

    def __init__(self, settings: PatchCoreSettings) -> None:
        super().__init__(settings)
        self.backbone = create_backbone(settings.backbone, (2, 3))
        # [target_dim, components]; None where distances are measured in all dimensions.
        directions = None
        if settings.components:
            directions = torch.zeros(settings.target_dim, settings.components)
        self.register_buffer("directions", directions)
        self.bank = Bank(self.dimensions, settings.reweight)

    @classmethod
    def settings_for(cls, backbone: str) -> PatchCoreSettings:
        if not backbone_facts(backbone).light:
            return PatchCoreSettings(backbone, Geometry("shorter-crop", 224, 224, 256))
        # 256 is to the 128 and 256 channels of resnet18 what the published 1024 is to 512 and 1024:
        # the same stencil.
        geometry = Geometry("stretch", 256, 256)
        return PatchCoreSettings(backbone, geometry, level_dim=256, target_dim=256)

    @classmethod
    def settings_to_time(
        cls, settings: PatchCoreSettings, images: int, available: int
    ) -> PatchCoreSettings:
        """Return settings that select as many rows from a few images as from all of them."""
        coreset = settings.coreset or DEFAULT_CORESET
        if coreset > 1:
            return settings
        return replace(settings, coreset=min(1.0, coreset * available / images))

    @property
    def dimensions(self) -> int:
        """The dimensions of the features that are compared with the rows of the bank."""
        return self.settings.components or self.settings.target_dim

    def features(self, image: Tensor) -> Tensor:
        """Compute the features [N, h, w, D] of uint8 BGR [N, H, W, 3] that the bank holds rows of.

        They are those of `patches`, or their principal components.
        """
        patches = self.patches(image)
        return patches if self.directions is None else patches @ self.directions

    def patches(self, image: Tensor) -> Tensor:
        """Compute patch features [N, h, w, target_dim] of uint8 BGR [N, H, W, 3] (section 3.1)."""
        level_dim = self.settings.level_dim
        return patch_features(self.backbone, image, level_dim, self.settings.target_dim)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(image)
        n, h, w, d = features.shape
        distance, winner = self.bank(features.view(-1, d))
        score, worst = distance.view(n, -1).max(1)
        if self.settings.reweight:
            samples = torch.arange(n)
            q = features.view(n, h * w, d)[samples, worst]
            score = score * self.bank.weight(q, winner.view(n, -1)[samples, worst])
        return score, smoothed_map(distance.view(n, h, w), self.settings.size, SIGMA)

    def fit(self, fit: Fit) -> int:
        """Collect features in one pass, then select the coreset; there is nothing to resume."""
        self.fill_bank(fit, raise_at_deadline(fit, self.name))
        return fit.steps

    def fill_bank(self, fit: Fit, progress: Progress) -> None:
        """Select the bank from the features of all images, and add a note about its size."""
        device = self.device
        self.eval()
        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            features = collect_features(fit.images, self.patches, device, folder, progress)
            _, h, w, d = features.shape
            flat = features.reshape(-1, d)
            if self.directions is not None:
                self.directions.copy_(principal_directions(flat, self.dimensions))
                flat = components_of(flat, self.directions, folder)
            rows, note = self._bank_rows(len(flat), (h, w))
            points = project(flat, fit.seed, device)
            selected = greedy_k_centre(points, rows, fit.seed, progress)
            self.bank.fill(torch.from_numpy(flat[selected.numpy()]), selected)
        fit.notes.append(note)

    def _bank_rows(self, patches: int, grid: tuple[int, int]) -> tuple[int, str]:
        """Return the number of rows of the bank, and a line that says why.

        It is the number that the settings ask for, but no more than any budget allows.
        """
        settings = self.settings
        dim = self.dimensions
        limits = {f"all {patches} patches": patches}
        coreset = settings.coreset
        if coreset is None and settings.budget_ms is None and settings.budget_mb is None:
            coreset = DEFAULT_CORESET
        if coreset is not None:
            limits[f"coreset {coreset:g}"] = _coreset_rows(coreset, patches)
        if settings.budget_mb is not None:
            rows = bank_budget.rows_for_megabytes(settings.budget_mb, dim, settings.reweight)
            limits[f"--budget-mb {settings.budget_mb:g}"] = rows
        measured = ""
        if settings.budget_ms is not None:
            most = min(limits.values())
            rows, time = bank_budget.rows_for_milliseconds(settings.budget_ms, dim, grid, most)
            measured = f"; searching them was measured on this machine at {time:.1f} ms per frame"
            if rows < most:
                limits[f"--budget-ms {settings.budget_ms:g}"] = rows
        reason = min(limits, key=limits.__getitem__)
        rows = limits[reason]
        size = rows * bank_budget.bytes_of_row(dim, settings.reweight) / 1e6
        return rows, f"bank: {rows} of {patches} patches ({reason}), {size:.1f} MB{measured}"

    def teaching(self) -> Teachable | None:
        coreset = self.settings.coreset
        most = None
        if self.settings.budget_ms is not None or self.settings.budget_mb is not None:
            # What a budget allowed on this machine.
            most = len(self.bank.vectors)
            coreset = coreset or 1.0
        grid, _ = self.backbone.grids(*self.settings.size)
        settings = {
            "coreset": coreset or DEFAULT_CORESET,
            "most_rows": most,
            "block": BLOCK,
            "part_rows": rows_of_part(grid),
        }
        if self.directions is not None:
            settings["dimensions"] = self.settings.target_dim
        return Teachable("nearest", "nearest.distance", settings)

    def require_bank(self) -> None:
        """Raise TrainError before `fit`."""
        if not len(self.bank.vectors):
            raise TrainError(
                f"{self.name} has no bank yet; train it first: "
                f"{command_line('train', '--data', 'DATA')}"
            )

    def fused(self) -> nn.Module:
        self.require_bank()
        return build_fused(self, FusedPatchCore)


def _coreset_rows(coreset: float, patches: int) -> int:
    """Return the rows that the setting `coreset` asks for: a fraction up to 1, rows above."""
    if coreset > 1:
        return int(coreset)
    return max(1, int(coreset * patches))


class FusedPatchCore(FusedMethod):
    """One stencil per level that also subtracts the bank's mean, then one search of the bank."""

    def __init__(self, method: PatchCore) -> None:
        super().__init__(method)
        settings = method.settings
        grid2, grid3 = method.backbone.grids(*settings.size)
        mean = method.bank.vectors.mean(0)
        self._add_stencils(method, mean)
        self.upsample = rewrites.Upsample(grid3, grid2)
        rows = whole_blocks(method.bank.vectors - mean)
        self.nearest = NearestRow(rows, grid2)
        score: nn.Module = _LargestDistance()
        if settings.reweight:
            score = Reweighting(rows, whole_blocks(method.bank.neighbours))
        self.score = fp32(score)
        self.smooth = fp32(rewrites.SmoothUpsample(grid2, settings.size, SIGMA))

    def _add_stencils(self, method: PatchCore, mean: Tensor) -> None:
        settings = method.settings
        kernels = rewrites.patch_stencils(
            method.backbone.channels, settings.level_dim, settings.target_dim
        )
        used2 = kernels[0].flatten(1).abs().sum(1) > 0
        used3 = kernels[1].flatten(1).abs().sum(1) > 0
        directions = method.directions
        # A row with taps in both levels, which an odd target_dim makes, is a sum, and so is a
        # principal component. Otherwise the rows of the levels are concatenated.
        self.added = directions is not None or bool((used2 & used3).any())
        self.stencils = nn.ModuleList()
        for kernel, used in zip(kernels, (used2, used3), strict=True):
            stencil: nn.Module
            if directions is not None:
                # The share of a level is computed on its own grid.
                share = rewrites.pointwise(directions[used].t(), -mean / 2)
                stencil = nn.Sequential(rewrites.grouped_convolution(kernel[used]), share)
            elif self.added:
                stencil = rewrites.grouped_convolution(kernel, -mean / 2)
            else:
                stencil = rewrites.grouped_convolution(kernel[used], -mean[used])
            self.stencils.append(stencil)

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        features, distance, winner = self.search(*levels)
        return self.score(features, distance, winner), self.smooth(distance)

    def search(self, *levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute features [N, D, h, w], their distance to the bank and its row, [N, h, w] each."""
        level2, level3 = levels
        fine = self.stencils[0](level2)
        # The weights of the upsampling sum to 1, so layer3's share of the mean may be subtracted
        # first.
        coarse = self.upsample(self.stencils[1](level3))
        features = fine + coarse if self.added else torch.cat([fine, coarse], 1)
        distance, winner = self.nearest(features)
        return features, distance, winner


class _LargestDistance(nn.Module):
    """The image score [N] without re-weighting: the largest patch distance [N, h, w]."""

    def forward(self, features: Tensor, distance: Tensor, winner: Tensor) -> Tensor:
        return distance.amax((1, 2))
