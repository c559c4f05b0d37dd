"""AE-SSIM: an auto-encoder that reconstructs good images, judged by structural similarity.

Bergmann, Löwe, Fauser, Sattlegger and Steger, "Improving unsupervised defect segmentation by
applying structural similarity to autoencoders" (VISAPP 2019), with the constants of a public
re-implementation (plutoyuxie/AutoEncoder-SSIM-for-unsupervised-anomaly-detection). That code
keeps the weights with the smallest loss on a fifth of the good images; here the last ones are kept.

What the network cannot reconstruct of a good part, such as a fine grid, has the largest residuals.
The light setting therefore standardises them at every position by their mean and deviation on the
good images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flawline.runtime.image import Geometry, Image
from flawline.train.blocks.auto_encoder import AutoEncoder, halvings
from flawline.train.blocks.fused import Largest, build_fused, fp32
from flawline.train.blocks.pictures import (
    LIGHT,
    PUBLISHED,
    PictureSettings,
    Planes,
    mean_colour,
    planes,
    turned,
)
from flawline.train.blocks.schedule import Schedule
from flawline.train.blocks.standardised_maps import (
    FusedStandardisation,
    StandardisedMaps,
    StandardisedMethod,
)
from flawline.train.blocks.structural_similarity import (
    SAMPLE,
    GaussianMean,
    dissimilarity,
    similarity,
    similarity_loss,
    uniform_mean,
)
from flawline.train.loop import Steps, batch_indices, half_precision
from flawline.train.method import Fit, Phase, require_multiple


class Training(NamedTuple):
    """How the network is trained.

    stride: pixels between the windows of the loss. turned: the probability of a random rotation.
    standardised: whether the map is.
    """

    schedule: Schedule
    stride: int
    turned: float
    standardised: bool


TRAININGS = {
    LIGHT: Training(
        schedule=Schedule(batch=8, learning_rate=1e-3, steps=1000),
        stride=3,
        turned=0.0,
        standardised=True,
    ),
    PUBLISHED: Training(
        # 200 passes over 10,000 images that are drawn from the good ones.
        schedule=Schedule(128, learning_rate=2e-4, steps=200 * math.ceil(10_000 / 128), drops=()),
        stride=1,
        turned=0.3,
        standardised=False,
    ),
}
WEIGHT_DECAY = 1e-5
MIRRORED = 0.3
# Degrees by which an image is rotated at most.
DEGREES = 45.0


@dataclass(frozen=True)
class AESSIMSettings(PictureSettings):
    """The settings of AE-SSIM; the published one is for images of 256 x 256 pixels."""

    @property
    def training(self) -> Training:
        """How the network is trained."""
        return TRAININGS[self.setting]


class AESSIM(StandardisedMethod):
    """AE-SSIM on whole images."""

    name: ClassVar[str] = "ae_ssim"
    Settings = AESSIMSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo", "elpv_mono", "mvtec_bottle")

    settings: AESSIMSettings
    colour: Tensor  # [3], BGR from 0 to 1, the mean of the good images

    def __init__(self, settings: AESSIMSettings) -> None:
        super().__init__(settings)
        require_multiple(settings.size, 2 ** halvings(*settings.size), "AE-SSIM")
        self.register_buffer("colour", torch.full((3,), 0.5))
        self.standardised = StandardisedMaps(settings.size)
        self.network = AutoEncoder(*settings.size)

    @classmethod
    def settings_for(cls, backbone: str) -> AESSIMSettings:
        return AESSIMSettings("", Geometry("stretch", 128, 128))

    @classmethod
    def steps(cls, settings: AESSIMSettings, images: int, epochs: int | None) -> int:
        return settings.training.schedule.length(images, epochs)

    # ------------------------------------------------------------ the literal pipeline

    def reconstruct(self, x: Tensor) -> Tensor:
        """Compute the reconstructions of images, both [N, 3, H, W] from 0 to 1."""
        return torch.sigmoid(self.network(x))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = planes(image, self.dtype)
        return self.judge(x, self.reconstruct(x))

    def judge(self, x: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] from images and reconstructions [N, 3, H, W].

        The map is the residual, standardised in the light setting, and the score its largest value.
        """
        anomaly_map = self.standardised(self.residual(x, reconstruction))
        return anomaly_map.amax((1, 2)), anomaly_map

    def residual(self, x: Tensor, reconstruction: Tensor) -> Tensor:
        """Compute 1 - SSIM in windows of 11 x 11 pixels, averaged over the channels: [N, H, W]."""
        return (1 - similarity(x, reconstruction, uniform_mean)).mean(1).to(x.dtype)

    # ------------------------------------------------------------ training

    @property
    def _standardises(self) -> bool:
        return self.settings.training.standardised

    def _map_of(self, image: Tensor) -> Tensor:
        x = planes(image, self.dtype)
        return self.residual(x, self.reconstruct(x))

    def _train(self, fit: Fit, phase: Phase) -> int:
        training = self.settings.training
        schedule = training.schedule
        if phase.state is None:
            self.colour.copy_(mean_colour(fit.images))
            self.network.initialise(torch.Generator().manual_seed(fit.seed), self.colour)
        optimiser = torch.optim.Adam(
            self.parameters(), schedule.learning_rate, weight_decay=WEIGHT_DECAY
        )
        steps = Steps(fit, phase, [optimiser], fit.steps)
        mean = GaussianMean(*self.settings.size, training.stride).to(self.device)

        def loss_of(step: int, chosen: Any) -> Tensor:
            optimiser.param_groups[0]["lr"] = schedule.rate(step / fit.steps)
            rng = np.random.default_rng((fit.seed, 1, step))
            images = [self._augmented(fit.images[index], rng) for index in chosen]
            return self.loss(images, mean)

        self.train()
        batches = batch_indices(len(fit.images), schedule.batch, fit.seed, steps.start)
        done = steps.run(batches, loss_of)
        self.eval()
        if done == fit.steps:
            phase.finish()
        return done

    def _augmented(self, image: Image, rng: np.random.Generator) -> Image:
        training = self.settings.training
        flip_rows, flip_columns, turn = rng.random(3) < (MIRRORED, MIRRORED, training.turned)
        degrees = float(rng.uniform(-DEGREES, DEGREES))
        if flip_rows:
            image = image[::-1]
        if flip_columns:
            image = image[:, ::-1]
        if turn:
            image = turned(np.ascontiguousarray(image), degrees)
        return image

    def loss(self, images: Sequence[Image], mean: GaussianMean) -> Tensor:
        """Compute the mean of 1 - SSIM of images, uint8 BGR [H, W, 3] each, and reconstructions."""
        x = planes(torch.from_numpy(np.stack(images)).to(self.device), torch.float32)
        x = x.contiguous(memory_format=torch.channels_last)
        with half_precision(x.device):
            logits = self.network(x)
        return similarity_loss(x, torch.sigmoid(logits.float()), mean)

    # ------------------------------------------------------------ the exported form

    def fused(self) -> nn.Module:
        return build_fused(self, FusedAESSIM)


class FusedAESSIM(nn.Module):
    """AE-SSIM for export: 1/255 in the first convolution, and 1 - SSIM in one FP32 island.

    `backbone` is the auto-encoder and `head` everything after it.
    """

    def __init__(self, method: AESSIM) -> None:
        super().__init__()
        self.input = Planes()
        self.backbone = method.network
        self.backbone.get_parameter("encoder.0.weight").data /= 255
        self.residual = fp32(_Residual(method))
        self.largest = fp32(Largest())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] of images, uint8 BGR [N, H, W, 3]."""
        x = self.input(image)
        return self.head(x, self.backbone(x))

    def head(self, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] from images from 0 to 255 and logits [N, 3, H, W]."""
        anomaly_map = self.residual(x, logits)
        return self.largest(anomaly_map), anomaly_map


class _Residual(nn.Module):
    """1 - SSIM, averaged over the channels and standardised: [N, H, W]."""

    colour: Tensor

    def __init__(self, method: AESSIM) -> None:
        super().__init__()
        self.register_buffer("colour", method.colour.view(3, 1, 1))
        self.standardisation = FusedStandardisation(method.standardised)

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        x = x / 255
        difference = torch.sigmoid(logits) - x
        x = x - self.colour
        residual = dissimilarity(x, difference, uniform_mean, self.colour, SAMPLE).mean(1)
        standardised: Tensor = self.standardisation(residual)
        return standardised
