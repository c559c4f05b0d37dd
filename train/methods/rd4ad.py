"""RevDist: a decoder learns to compute a frozen teacher's features from an embedding of them.

Deng and Li, "Anomaly detection via reverse distillation from one-class embedding", CVPR 2022, with
the constants of the authors' code (hq-deng/RD4AD). Its loss takes the cosine of whole maps; that of
the paper takes it position by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.options import option
from flawline.runtime.image import Geometry
from flawline.train.backbones import backbone_facts, create_backbone
from flawline.train.backbones.torchvision_files import initialise
from flawline.train.blocks.fused import (
    FusedMethod,
    Largest,
    Size,
    build_fused,
    fold_batchnorm,
    fp32,
    gaussian_matrix,
    resize_matrix,
)
from flawline.train.blocks.patches import gaussian
from flawline.train.blocks.reverse_resnet import Decoder, Embedding
from flawline.train.blocks.stored_levels import StoredLevels, stored_levels
from flawline.train.blocks.unit_distances import UnitDistance
from flawline.train.loop import Steps, batch_indices, choose_steps, half_cosine, half_precision
from flawline.train.method import Fit, Method, MethodSettings, require_multiple

BATCH = 16  # images
PUBLISHED_EPOCHS = 200
LIGHT_STEPS = 200
BETAS = (0.5, 0.999)
STRIDE = 32  # input pixels per position of the embedding, which the decoder doubles three times
SIGMA = 4.0  # of the Gaussian over the anomaly map, in pixels of the input


@dataclass(frozen=True)
class RevDistSettings(MethodSettings):
    """The settings of RevDist; none is a flag. The defaults are the published values."""

    learning_rate: float = option(5e-3, "of the first step")
    decay: bool = option(False, "the learning rate falls to 0 along half a cosine")


class RevDist(Method):
    """RevDist on three levels of a residual network."""

    name: ClassVar[str] = "rd4ad"
    Settings = RevDistSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo", "elpv_mono", "mvtec_bottle")
    # At half of it the embedding has a single position, of which BatchNorm takes no statistics in a
    # batch of one image.
    smallest_size: ClassVar[int] = 2 * STRIDE

    settings: RevDistSettings

    def __init__(self, settings: RevDistSettings) -> None:
        super().__init__(settings)
        require_multiple(settings.size, STRIDE, self.name)
        self.backbone = create_backbone(settings.backbone, (1, 2, 3))
        self.embedding = Embedding(settings.backbone)
        self.decoder = Decoder(settings.backbone)

    @classmethod
    def settings_for(cls, backbone: str) -> RevDistSettings:
        geometry = Geometry("stretch", 256, 256)
        return RevDistSettings(backbone, geometry, decay=backbone_facts(backbone).light)

    @classmethod
    def steps(cls, settings: RevDistSettings, images: int, epochs: int | None) -> int:
        return choose_steps(
            settings.backbone,
            images,
            epochs,
            batch=BATCH,
            published=PUBLISHED_EPOCHS,
            light=LIGHT_STEPS,
        )

    # ------------------------------------------------------------ the literal pipeline

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(*self.backbone.extract(image))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] from the teacher's levels [N, C, h, w].

        The map is the sum over the levels of 1 - cosine, smoothed by a Gaussian; the score is its
        largest value.
        """
        total = torch.zeros((), dtype=levels[0].dtype, device=levels[0].device)
        for level, decoded in zip(levels, self.decoder(self.embedding(*levels)), strict=True):
            distance = 1 - F.cosine_similarity(level, decoded)
            total = total + F.interpolate(
                distance[:, None], size=self.settings.size, mode="bilinear", align_corners=True
            )
        anomaly_map = gaussian(total, SIGMA)[:, 0]
        return anomaly_map.amax((1, 2)), anomaly_map

    # ------------------------------------------------------------ training

    def fit(self, fit: Fit) -> int:
        self.eval()
        with stored_levels(self.backbone, fit, self.device) as levels:
            return self._train(levels, fit)

    def _train(self, levels: StoredLevels, fit: Fit) -> int:
        """Train embedding and decoder on the teacher's levels of the images."""
        phase = fit.phase("training")
        trained = nn.ModuleList([self.embedding, self.decoder])
        if phase.state is None:
            initialise(trained, fit.seed)
        optimiser = torch.optim.Adam(trained.parameters(), self.settings.learning_rate, BETAS)
        steps = Steps(fit, phase, [optimiser], fit.steps)

        def loss_of(step: int, chosen: Any) -> Tensor:
            if self.settings.decay:
                rate = self.settings.learning_rate * half_cosine(step / fit.steps)
                optimiser.param_groups[0]["lr"] = rate
            return self.loss(levels.of(chosen))

        self.train()
        done = steps.run(batch_indices(len(levels), BATCH, fit.seed, steps.start), loss_of)
        self.eval()
        return done

    def loss(self, levels: Sequence[Tensor]) -> Tensor:
        """Compute 1 - cosine of whole levels [N, C, h, w] and decoded ones, summed over levels."""
        inputs = [x.contiguous(memory_format=torch.channels_last) for x in levels]
        with half_precision(levels[0].device):
            decoded = self.decoder(self.embedding(*inputs))
        total = torch.zeros((), device=levels[0].device)
        for level, other in zip(levels, decoded, strict=True):
            cosine = F.cosine_similarity(level.flatten(1), other.float().flatten(1))
            total = total + (1 - cosine).mean()
        return total

    # ------------------------------------------------------------ the exported form

    def fused(self) -> nn.Module:
        return build_fused(self, FusedRevDist)


class FusedRevDist(FusedMethod):
    """RevDist for export: BatchNorms folded, and the map in one FP32 island.

    1 - cosine is half the squared distance of unit vectors, which rounding does not cancel. The two
    differ only where one of the vectors is all zeros: 1 against 1/2. The transposed convolutions
    stay as they are: OpenVINO is slower with a 1x1 convolution and DepthToSpace, and with the two
    that read one map joined.
    """

    def __init__(self, method: RevDist) -> None:
        super().__init__(method)
        self.embedding = fold_batchnorm(method.embedding)
        self.decoder = fold_batchnorm(method.decoder)
        self.distances = nn.ModuleList()
        for _ in method.backbone.levels:
            self.distances.append(fp32(UnitDistance()))
        grids = method.backbone.grids(*method.settings.size)
        self.smooth = fp32(_SmoothSum(grids, method.settings.size))
        self.largest = fp32(Largest())

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        decoded = self.decoder(self.embedding(*levels))
        maps = []
        for distance, level, other in zip(self.distances, levels, decoded, strict=True):
            maps.append(distance(level, other).squeeze(1))
        anomaly_map = self.smooth(*maps)
        return self.largest(anomaly_map), anomaly_map


class _SmoothSum(nn.Module):
    """Half the sum of maps [N, h, w], resized with aligned corners and smoothed: [N, H, W].

    The columns are resized per map. The rows are resized and the maps summed by one product with
    the matrices of all maps side by side.
    """

    rows: Tensor

    def __init__(self, grids: Sequence[Size], size: Size) -> None:
        super().__init__()
        smooth_rows = gaussian_matrix(size[0], SIGMA)
        smooth_columns = gaussian_matrix(size[1], SIGMA)
        rows = []
        for number, (height, width) in enumerate(grids):
            rows.append(smooth_rows @ resize_matrix(height, size[0], align_corners=True))
            columns = smooth_columns @ resize_matrix(width, size[1], align_corners=True)
            self.register_buffer(f"columns{number}", columns.T.contiguous())
        self.register_buffer("rows", torch.cat(rows, 1) / 2)

    def forward(self, *maps: Tensor) -> Tensor:
        wide = []
        for number, one in enumerate(maps):
            wide.append(one @ self.get_buffer(f"columns{number}"))
        return self.rows @ torch.cat(wide, 1)
