"""DRAEM: a network that removes synthetic anomalies, and one that finds what it has removed.

Zavrtanik, Kristan and Skočaj, "DRAEM: a discriminatively trained reconstruction embedding for
surface anomaly detection" (ICCV 2021), with the constants of the authors' code (VitjanZ/DRAEM).
Their textures are those of the Describable Textures Dataset, which `--textures` takes; by default
they are drawn by formulas. Other differences from their code, in both settings: an empty mask is
drawn again, rotated images are mirrored at the border instead of black, and the good images are
taken in shuffled passes, not with replacement. The random changes of a texture are theirs in the
published setting, and those of GLASS in the light one, which was tuned with them.

After a short training, good images have high probabilities at some places. The light setting
therefore standardises the maps at every position by their mean and deviation on the good images.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.options import option
from flawline.runtime.image import Geometry, Image
from flawline.train.anomalies.perlin import perlin_mask
from flawline.train.anomalies.strong_changes import STRONG_OPERATIONS
from flawline.train.anomalies.textured import Recipe
from flawline.train.anomalies.textured_turned import TexturedTurned
from flawline.train.anomalies.textures import OPERATIONS, Operation, open_textures
from flawline.train.blocks.fused import build_fused, fp32
from flawline.train.blocks.pictures import (
    LIGHT,
    PUBLISHED,
    PictureSettings,
    Planes,
    planes,
)
from flawline.train.blocks.schedule import Drop, Schedule
from flawline.train.blocks.standardised_maps import (
    FusedStandardisation,
    StandardisedMaps,
    StandardisedMethod,
)
from flawline.train.blocks.structural_similarity import GaussianMean, similarity_loss
from flawline.train.blocks.u_nets import (
    UNIT,
    DifferenceNetwork,
    FoldedNetworks,
    ReconstructionNetwork,
    focal_loss,
    initialise,
)
from flawline.train.loop import Steps, half_precision
from flawline.train.method import Fit, Phase, require_multiple

# Largest share of the good image that stays visible below a texture.
LARGEST_KEPT = 0.8


class Training(NamedTuple):
    """The networks and how they are trained.

    widths: channels of both networks at full size. align_corners: of their upsampling.
    window: side of the window, in pixels, whose largest mean is the score.
    stride: pixels between the windows of SSIM.
    operations: the changes of a texture, of which three are applied.
    turned: the probability of a random rotation of the good image. matched: whether textures in a
    grey image are grey. spread: of the initial weights, as in `initialise`. standardised: whether
    the map is.
    """

    widths: tuple[int, int]
    align_corners: bool
    schedule: Schedule
    window: int
    stride: int
    operations: Sequence[Operation]
    turned: float
    matched: bool
    spread: float | None
    standardised: bool


TRAININGS = {
    LIGHT: Training(
        widths=(16, 8),
        align_corners=False,
        schedule=Schedule(batch=8, learning_rate=3e-3, steps=500),
        window=11,
        stride=3,
        operations=OPERATIONS,
        turned=0.0,
        matched=True,
        spread=None,
        standardised=True,
    ),
    PUBLISHED: Training(
        widths=(128, 64),
        align_corners=True,
        schedule=Schedule(8, 1e-4, epochs=700, drops=(Drop(0.8, 0.2), Drop(0.9, 0.04))),
        window=21,
        stride=1,
        operations=STRONG_OPERATIONS,
        turned=0.3,
        matched=False,
        spread=0.02,
        standardised=False,
    ),
}


@dataclass(frozen=True)
class DRAEMSettings(PictureSettings):
    """The settings of DRAEM; the published one is for images of 256 x 256 pixels."""

    textures: str | None = option(
        None,
        "folder of texture images for the synthetic anomalies; default: procedural textures",
        flag=True,
        anomaly_flag=True,
    )

    @property
    def training(self) -> Training:
        """The networks and how they are trained."""
        return TRAININGS[self.setting]


def draw_kept(rng: np.random.Generator) -> float:
    """Draw which share of the good image stays visible below a texture."""
    return float(rng.uniform(0, LARGEST_KEPT))


class DRAEM(StandardisedMethod):
    """DRAEM."""

    name: ClassVar[str] = "draem"
    trains_against: ClassVar[tuple[str, ...]] = ("texture",)
    Settings = DRAEMSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo", "elpv_mono", "mvtec_bottle")

    settings: DRAEMSettings

    def __init__(self, settings: DRAEMSettings) -> None:
        super().__init__(settings)
        require_multiple(settings.size, UNIT, "DRAEM")
        training = settings.training
        self.reconstruction = ReconstructionNetwork(training.widths[0], training.align_corners)
        self.difference = DifferenceNetwork(training.widths[1], training.align_corners)
        self.standardised = StandardisedMaps(settings.size)

    @classmethod
    def settings_for(cls, backbone: str) -> DRAEMSettings:
        return DRAEMSettings("", Geometry("stretch", 128, 128))

    @classmethod
    def complete_settings(cls, settings: DRAEMSettings, data: Path) -> DRAEMSettings:
        # A folder that cannot be used is an error here, before any image is read.
        open_textures(settings.textures, seed=0)
        return settings

    @classmethod
    def steps(cls, settings: DRAEMSettings, images: int, epochs: int | None) -> int:
        return settings.training.schedule.length(images, epochs)

    @classmethod
    def anomalies(
        cls, settings: DRAEMSettings, images: Sequence[Image], seed: int
    ) -> TexturedTurned:
        training = settings.training
        recipe = Recipe(
            perlin_mask, draw_kept, training.operations, share=0.5, matched=training.matched
        )
        textures = open_textures(settings.textures, seed)
        return TexturedTurned(images, textures, recipe, seed, training.turned)

    # ------------------------------------------------------------ the literal pipeline

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.judge(self.logits(planes(image, self.dtype))[1])

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute reconstructions [N, 3, H, W] and logits [N, 2, H, W] of images from 0 to 1."""
        reconstruction = self.reconstruction(x)
        return reconstruction, self.difference(torch.cat([reconstruction, x], 1))

    def judge(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] from logits [N, 2, H, W] of good and anomalous.

        The map is the probability of an anomaly, standardised in the light setting, and the score
        its largest mean over a window, which beyond the border of the image counts as 0.
        """
        anomaly_map = self.standardised(torch.softmax(logits, 1)[:, 1])
        return largest_mean(anomaly_map, self.settings.training.window), anomaly_map

    # ------------------------------------------------------------ training

    @property
    def _standardises(self) -> bool:
        return self.settings.training.standardised

    def _map_of(self, image: Tensor) -> Tensor:
        return torch.softmax(self.logits(planes(image, self.dtype))[1], 1)[:, 1]

    def _train(self, fit: Fit, phase: Phase) -> int:
        training = self.settings.training
        schedule = training.schedule
        if phase.state is None:
            generator = torch.Generator().manual_seed(fit.seed)
            initialise(self.reconstruction, training.spread, generator)
            initialise(self.difference, training.spread, generator)
        optimiser = torch.optim.Adam(self.parameters(), schedule.learning_rate)
        steps = Steps(fit, phase, [optimiser], fit.steps)
        draws = self.anomalies(self.settings, fit.images, fit.seed)
        mean = GaussianMean(*self.settings.size, training.stride).to(self.device)

        def loss_of(step: int, chosen: Any) -> Tensor:
            optimiser.param_groups[0]["lr"] = schedule.rate(step / fit.steps)
            return self.loss([draws.sample(draw) for draw in chosen], mean)

        self.train()
        done = steps.run(_batches(schedule.batch, steps.start), loss_of)
        self.eval()
        if done == fit.steps:
            phase.finish()
        return done

    def loss(self, samples: Sequence[tuple[Any, Any, Any]], mean: GaussianMean) -> Tensor:
        """Compute the loss of good images, images with anomalies and their masks.

        It is the mean square and the mean of 1 - SSIM of the difference between the reconstruction
        and the good image, and the focal loss of the pixels.
        """
        normal, synthetic, mask = (np.stack(arrays) for arrays in zip(*samples, strict=True))
        good = planes(torch.from_numpy(normal).to(self.device), torch.float32)
        x = planes(torch.from_numpy(synthetic).to(self.device), torch.float32)
        x = x.contiguous(memory_format=torch.channels_last)
        with half_precision(x.device):
            reconstruction, logits = self.logits(x)
        reconstruction = reconstruction.float()
        loss = F.mse_loss(reconstruction, good) + similarity_loss(good, reconstruction, mean)
        return loss + focal_loss(logits.float(), torch.from_numpy(mask).to(self.device))

    # ------------------------------------------------------------ the exported form

    def fused(self) -> nn.Module:
        return build_fused(self, FusedDRAEM)


def _batches(size: int, start: int) -> Iterator[range]:
    """Yield the numbers of the draws of each step, without end."""
    for step in itertools.count(start):
        yield range(step * size, (step + 1) * size)


def largest_mean(maps: Tensor, window: int) -> Tensor:
    """Return the largest mean of a window of so many pixels squared of maps [N, H, W]: [N].

    Pixels beyond the border count as 0.
    """
    return F.avg_pool2d(maps[:, None], window, 1, window // 2).amax((1, 2, 3))


class FusedDRAEM(nn.Module):
    """DRAEM for export: BatchNorm and 1/255 in the convolutions, one sigmoid in place of a softmax.

    The softmax of two logits is the sigmoid of their difference, which is one convolution.
    `backbone` is both networks, and `head` the last convolution and everything after it.
    """

    def __init__(self, method: DRAEM) -> None:
        super().__init__()
        self.input = Planes()
        self.backbone = FoldedNetworks(method.reconstruction, method.difference)
        self.last = self.backbone.take_last()
        self.map = fp32(_Map(method))
        self.largest = fp32(_LargestMean(method.settings.training.window))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] of images, uint8 BGR [N, H, W, 3]."""
        return self.head(self.backbone(self.input(image)))

    def head(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] from the features [N, C, H, W] of the networks."""
        anomaly_map = self.map(self.last(features))
        return self.largest(anomaly_map), anomaly_map


class _Map(nn.Module):
    """The logit of an anomaly [N, 1, H, W] to the map [N, H, W]."""

    def __init__(self, method: DRAEM) -> None:
        super().__init__()
        self.standardisation = FusedStandardisation(method.standardised)

    def forward(self, logit: Tensor) -> Tensor:
        standardised: Tensor = self.standardisation(torch.sigmoid(logit)[:, 0])
        return standardised


class _LargestMean(nn.Module):
    """`largest_mean` as a module, so that it can be marked FP32."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, anomaly_map: Tensor) -> Tensor:
        return largest_mean(anomaly_map, self.window)
