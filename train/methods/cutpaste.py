"""CutPaste: PatchCore or a Gaussian on features that tell pasted patches and scars apart.

Li et al., "CutPaste: self-supervised learning for anomaly detection and localization" (CVPR 2021),
the classifier of three classes. With `--density gaussian`, the score of an image is that of the
paper: the distance of its embedding to a Gaussian of the good images. The paper locates defects
with a second training on small patches; here the map is always PatchCore's on the same backbone,
which is how CutSwap's authors use CutPaste, too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.options import option
from flawline.runtime.image import Image
from flawline.train import TrainError
from flawline.train.anomalies.three_way import CutPaste as PastedPatches
from flawline.train.backbones.facts import RANDOM
from flawline.train.blocks.fused import build_fused, fold_batchnorm, fp32
from flawline.train.blocks.patch_classifier import PatchClassifier, channels_after, pooled
from flawline.train.blocks.patches import collect_features
from flawline.train.blocks.shrunk_gaussian import shrunk_gaussian
from flawline.train.blocks.tuned_patchcore import SeriesOfSteps, TunedPatchCore, TunedSettings
from flawline.train.method import Fit
from flawline.train.methods.patchcore import FusedPatchCore
from flawline.train.progress import Progress

DENSITIES = ("patchcore", "gaussian")


@dataclass(frozen=True)
class CutPasteSettings(TunedSettings):
    """The settings of CutPaste: those of the fine-tuning, and how an image is scored."""

    density: Literal["patchcore", "gaussian"] = option(
        "patchcore",
        "score of an image: patchcore, or gaussian (the paper's distance of the embedding of the "
        "whole image; the map stays PatchCore's); default patchcore",
        flag=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.density not in DENSITIES:
            raise TrainError(f"--density {self.density} is unknown; known: {', '.join(DENSITIES)}")
        if self.density == "gaussian" and self.reweight:
            raise TrainError(
                "--density gaussian: its score is not re-weighted; leave out --reweight"
            )


class CutPaste(TunedPatchCore):
    """CutPaste with three classes; by default at the run-time cost of PatchCore."""

    name: ClassVar[str] = "cutpaste"
    trains_against: ClassVar[tuple[str, ...]] = ("patch", "scar")
    Settings = CutPasteSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo", "elpv_mono", "mvtec_bottle")

    settings: CutPasteSettings
    # Of the embeddings of the good images; empty without a Gaussian.
    embedding_mean: Tensor  # [C]
    whitening: Tensor  # [C, C]

    def __init__(self, settings: CutPasteSettings) -> None:
        super().__init__(settings)
        channels = 0
        self.stage: nn.Module | None = None
        if settings.density == "gaussian":
            self.stage, _ = self.pretrained.stage_after(RANDOM, 0)
            channels = channels_after(self.stage, self.backbone.channels[-1])
        self.register_buffer("embedding_mean", torch.zeros(channels))
        self.register_buffer("whitening", torch.zeros(channels, channels))
        self.train(self.training)

    @classmethod
    def anomalies(
        cls, settings: CutPasteSettings, images: Sequence[Image], seed: int
    ) -> PastedPatches:
        return PastedPatches(images, seed)

    def anomaly_origin(self) -> str:
        return PastedPatches.description

    def series(self, fit: Fit, classifier: PatchClassifier) -> SeriesOfSteps:
        pasted = self.anomalies(self.settings, fit.images, fit.seed)
        return SeriesOfSteps(lambda step: pasted, {})

    def keep(self, classifier: PatchClassifier) -> None:
        if self.stage is not None:
            self.stage.load_state_dict(classifier.stage.state_dict())
            self.stage.requires_grad_(False)
            self.stage.eval()

    def fill_bank(self, fit: Fit, progress: Progress) -> None:
        super().fill_bank(fit, progress)
        if self.stage is None:
            return
        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            rows = collect_features(fit.images, self.embedding, self.device, folder, progress)
        mean, whitening = shrunk_gaussian(torch.from_numpy(np.asarray(rows)).double())
        self.embedding_mean.copy_(mean)
        self.whitening.copy_(whitening)

    def embedding(self, image: Tensor) -> Tensor:
        """Compute the embedding [N, C], of length 1, of images, uint8 BGR [N, H, W, 3]."""
        assert self.stage is not None
        return F.normalize(pooled(self.stage, self.backbone.extract(image)[-1]))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        score, anomaly_map = super().forward(image)
        if self.stage is not None:
            offset = self.embedding(image) - self.embedding_mean
            inverse_covariance = self.whitening @ self.whitening.T
            squared = torch.einsum("ni,ij,nj->n", offset, inverse_covariance, offset)
            score = squared.clamp(min=0).sqrt()
        return score, anomaly_map

    def fused(self) -> nn.Module:
        if self.stage is None:
            return super().fused()
        self.require_bank()
        return build_fused(self, FusedGaussianScore)


class FusedGaussianScore(FusedPatchCore):
    """PatchCore's map, and the distance of the pooled features of one more stage as the score."""

    def __init__(self, method: CutPaste) -> None:
        super().__init__(method)
        # PatchCore's score is not a part of this graph.
        self.score = nn.Identity()
        assert method.stage is not None
        self.stage = fold_batchnorm(method.stage)
        self.density = fp32(_GaussianDistance(method.embedding_mean, method.whitening))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        _, distance, _ = self.search(*levels)
        return self.density(self.stage(levels[-1])), self.smooth(distance)


class _GaussianDistance(nn.Module):
    """The distance [N] of pooled features [N, C, h, w] to a Gaussian, after scaling to length 1."""

    mean: Tensor
    whitening: Tensor

    def __init__(self, mean: Tensor, whitening: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("whitening", whitening)

    def forward(self, features: Tensor) -> Tensor:
        offset = F.normalize(features.mean((2, 3))) - self.mean
        distance: Tensor = torch.linalg.vector_norm(offset @ self.whitening, dim=1)
        return distance
