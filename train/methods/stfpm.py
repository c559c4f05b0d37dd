"""STFPM: a student network learns the features of a frozen teacher on good images.

Wang, Han, Ding and Huang, "Student-teacher feature pyramid matching for anomaly detection", BMVC
2021, with the constants of the authors' code (gdwang08/STFPM). That code holds out a fifth of the
good images and keeps the weights with the smallest loss on them; here the last ones are kept.

The light setting compares layer2 and layer3 alone, on the grid of layer2. It trains for 200 steps
of 8 images, with half the learning rate, which falls to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.options import option
from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.backbones import backbone_facts, create_backbone
from flawline.train.backbones.base import Backbone
from flawline.train.backbones.facts import RANDOM
from flawline.train.blocks.fused import (
    FusedMethod,
    Largest,
    Upsample,
    build_fused,
    fold_backbone,
    fp32,
)
from flawline.train.blocks.stored_levels import StoredLevels, stored_levels
from flawline.train.blocks.unit_distances import UnitDistance, unit_distance
from flawline.train.loop import Steps, batch_indices, choose_steps, half_cosine, half_precision
from flawline.train.method import Fit, Method, MethodSettings

LEVELS = (1, 2, 3)
PUBLISHED_EPOCHS = 100
LIGHT_STEPS = 200
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
# Added to the seed of a training for the student's initial weights. No seed of random weights of
# the teacher is that large, so that the two never begin as the same network.
STUDENT_SEED = 1 << 31


@dataclass(frozen=True)
class STFPMSettings(MethodSettings):
    """The settings of STFPM; none is a flag. The defaults are the published values."""

    batch: int = option(32, "images of a step")
    learning_rate: float = option(0.4, "of the first step")
    decay: bool = option(False, "the learning rate falls to 0 along half a cosine")
    first_level: int = option(1, "first of the levels that are compared, 1 to 3; the last is 3")

    def __post_init__(self) -> None:
        if self.first_level not in LEVELS:
            raise TrainError(f"first_level {self.first_level} is not from 1 to 3")


class STFPM(Method):
    """STFPM on the levels of a residual network."""

    name: ClassVar[str] = "stfpm"
    Settings = STFPMSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo", "elpv_mono", "mvtec_bottle")
    trains_on_pixels: ClassVar[bool] = True

    settings: STFPMSettings

    def __init__(self, settings: STFPMSettings) -> None:
        super().__init__(settings)
        levels = tuple(level for level in LEVELS if level >= settings.first_level)
        self.backbone = create_backbone(settings.backbone, levels)
        self.student = create_backbone(settings.backbone, levels)

    @classmethod
    def settings_for(cls, backbone: str) -> STFPMSettings:
        geometry = Geometry("stretch", 256, 256)
        if not backbone_facts(backbone).light:
            return STFPMSettings(backbone, geometry)
        # Smaller batches learn more from as many images, which is what the time goes by. After so
        # few steps, the largest distances on the first level of good solar cells are as large as
        # those on defective ones, and the product with them loses what the other levels find.
        return STFPMSettings(
            backbone, geometry, batch=8, learning_rate=0.2, decay=True, first_level=2
        )

    @classmethod
    def steps(cls, settings: STFPMSettings, images: int, epochs: int | None) -> int:
        return choose_steps(
            settings.backbone,
            images,
            epochs,
            batch=settings.batch,
            published=PUBLISHED_EPOCHS,
            light=LIGHT_STEPS,
        )

    # ------------------------------------------------------------ the literal pipeline

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.judge(self.backbone.extract(image), self.student.extract(image))

    def judge(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] from the levels [N, C, h, w] of both networks.

        The distances of the levels are multiplied on the grid of the finest one. The score is the
        largest value of the map, which is lower than that of the product on the grid.
        """
        grid = teacher[0].shape[2:]
        product = torch.ones((), dtype=teacher[0].dtype, device=teacher[0].device)
        for first, second in zip(teacher, student, strict=True):
            distance = unit_distance(first, second)[:, None]
            product = product * F.interpolate(
                distance, size=grid, mode="bilinear", align_corners=False
            )
        anomaly_map = F.interpolate(
            product, size=self.settings.size, mode="bilinear", align_corners=False
        )[:, 0]
        return anomaly_map.amax((1, 2)), anomaly_map

    # ------------------------------------------------------------ training

    def fit(self, fit: Fit) -> int:
        self.eval()
        with stored_levels(self.backbone, fit, self.device) as levels:
            return self._train(levels, fit)

    def _train(self, levels: StoredLevels, fit: Fit) -> int:
        """Train the student towards the teacher's levels of the images."""
        phase = fit.phase("training")
        if phase.state is None:
            self._initialise(fit.seed)
        optimiser = torch.optim.SGD(
            self.student.parameters(),
            self.settings.learning_rate,
            MOMENTUM,
            weight_decay=WEIGHT_DECAY,
        )
        steps = Steps(fit, phase, [optimiser], fit.steps)

        def loss_of(step: int, chosen: Any) -> Tensor:
            if self.settings.decay:
                rate = self.settings.learning_rate * half_cosine(step / fit.steps)
                optimiser.param_groups[0]["lr"] = rate
            images = np.stack([fit.images[index] for index in chosen])
            image = torch.from_numpy(images).to(self.device)
            return self.loss(image, levels.of(chosen))

        self.train()
        done = steps.run(
            batch_indices(len(levels), self.settings.batch, fit.seed, steps.start), loss_of
        )
        self.eval()
        return done

    def _initialise(self, seed: int) -> None:
        self.student.load(RANDOM, seed + STUDENT_SEED)

    def loss(self, image: Tensor, teacher: Sequence[Tensor]) -> Tensor:
        """Compute the mean distance of the student's levels from the teacher's, added up.

        image: uint8 BGR [N, H, W, 3]. teacher: levels [N, C, h, w].
        """
        x = self.student.normalise(image).contiguous(memory_format=torch.channels_last)
        with half_precision(x.device):
            student = self.student(x)
        total = torch.zeros((), device=x.device)
        for first, second in zip(teacher, student, strict=True):
            total = total + unit_distance(first, second.float()).mean()
        return total

    # ------------------------------------------------------------ the exported form

    def fused(self) -> nn.Module:
        return build_fused(self, FusedSTFPM)


class TwoNetworks(nn.Module):
    """Teacher and student: normalised images to the levels of the first, then of the second."""

    def __init__(self, teacher: Backbone, student: Backbone) -> None:
        super().__init__()
        self.teacher = teacher
        self.student = student

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (*self.teacher(x), *self.student(x))


class FusedSTFPM(FusedMethod):
    """STFPM for export: both networks folded, and the map in one FP32 island.

    The product of three distances of good images is below FP16's normal range. The first
    convolutions of both networks stay apart: as one, they would need a Split, for which OpenVINO
    takes longer than it saves.
    """

    def __init__(self, method: STFPM) -> None:
        super().__init__(method)
        _, student = fold_backbone(method.student)
        self.backbone = TwoNetworks(self.backbone, student)  # type: ignore[assignment]
        self.product = fp32(_Product(method))
        self.largest = fp32(Largest())

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        anomaly_map = self.product(*levels).squeeze(1)
        return self.largest(anomaly_map), anomaly_map


class _Product(nn.Module):
    """The map [N, 1, H, W] from the levels [N, C, h, w] of the teacher, then of the student."""

    def __init__(self, method: STFPM) -> None:
        super().__init__()
        grids = method.backbone.grids(*method.settings.size)
        self.distances = nn.ModuleList()
        self.resizes = nn.ModuleList()
        for grid in grids:
            self.distances.append(UnitDistance())
            self.resizes.append(nn.Identity() if grid == grids[0] else Upsample(grid, grids[0]))
        self.upsample = Upsample(grids[0], method.settings.size)

    def forward(self, *levels: Tensor) -> Tensor:
        half = len(levels) // 2
        product: Tensor | None = None
        for number, (distance, resize) in enumerate(zip(self.distances, self.resizes, strict=True)):
            resized = resize(distance(levels[number], levels[half + number]))
            product = resized if product is None else product * resized
        anomaly_map: Tensor = self.upsample(product)
        return anomaly_map
