"""InTra: a transformer that predicts each patch of a good image from the patches around it.

Pirnay and Chai, "Inpainting transformer for anomaly detection" (ICIAP 2022), with the constants of
a public re-implementation (jhy12/inpainting-transformer) and the paper's weights of the loss. That
code also flips and distorts images in training, and its windows in an inspection are not centred on
their patches; both are left out.

The light setting standardises the residuals at every position by their mean and deviation on the
good images, since they are largest where a good part cannot be predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.runtime.image import Geometry
from flawline.train.blocks.fused import Largest, build_fused, fp32
from flawline.train.blocks.gradient_similarity import (
    GradientResidual,
    gradient_loss,
    mean_matrix,
    similarity_map,
)
from flawline.train.blocks.inpainting_transformer import (
    FusedInpaintingTransformer,
    InpaintingTransformer,
)
from flawline.train.blocks.patch_windows import (
    PATCH,
    WINDOW,
    image_of,
    patches_of,
    window_table,
)
from flawline.train.blocks.pictures import (
    LIGHT,
    PUBLISHED,
    PictureSettings,
    Planes,
    mean_colour,
    planes,
)
from flawline.train.blocks.schedule import Drop, Schedule
from flawline.train.blocks.standardised_maps import (
    FusedStandardisation,
    StandardisedMaps,
    StandardisedMethod,
)
from flawline.train.blocks.structural_similarity import GaussianMean, similarity_loss
from flawline.train.loop import Indices, Steps, batch_indices, half_precision
from flawline.train.method import Fit, Phase, require_multiple

SCALES = 3
# Side of the mean filter of the map, in pixels.
FILTER = 21
WEIGHT_DECAY = 1e-5
# Of the means of 1 - MSGMS and 1 - SSIM in the loss.
SIMILARITY_WEIGHT = 0.01


class Training(NamedTuple):
    """The size of the network, and how it is trained.

    windows: that are read of each image of a step. standardised: whether the map is.
    """

    width: int
    heads: int
    blocks: int
    windows: int
    schedule: Schedule
    standardised: bool


TRAININGS = {
    LIGHT: Training(
        width=96,
        heads=4,
        blocks=4,
        windows=8,
        schedule=Schedule(batch=8, learning_rate=1e-3, steps=1500),
        standardised=True,
    ),
    PUBLISHED: Training(
        width=512,
        heads=8,
        blocks=13,
        windows=1,
        schedule=Schedule(256, learning_rate=1e-4, epochs=2000, drops=(Drop(2 / 3, 0.1),)),
        standardised=False,
    ),
}


@dataclass(frozen=True)
class InTraSettings(PictureSettings):
    """The settings of InTra; the published one is for images of 256 x 256 pixels."""

    @property
    def training(self) -> Training:
        """The size of the network, and how it is trained."""
        return TRAININGS[self.setting]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.size[0] // PATCH, self.size[1] // PATCH


class InTra(StandardisedMethod):
    """InTra on patches of 16 x 16 pixels and windows of 7 x 7 patches."""

    name: ClassVar[str] = "intra"
    Settings = InTraSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo",)
    smallest_size: ClassVar[int] = PATCH * WINDOW

    settings: InTraSettings
    table: Tensor  # int64 [patches, 49], the window of each patch

    def __init__(self, settings: InTraSettings) -> None:
        super().__init__(settings)
        require_multiple(settings.size, PATCH, "InTra")
        training = settings.training
        table = window_table(*settings.grid)
        self.register_buffer("table", table, persistent=False)
        self.standardised = StandardisedMaps(settings.size)
        self.network = InpaintingTransformer(
            training.width, training.heads, training.blocks, len(table)
        )

    @classmethod
    def settings_for(cls, backbone: str) -> InTraSettings:
        return InTraSettings("", Geometry("stretch", 128, 128))

    @classmethod
    def steps(cls, settings: InTraSettings, images: int, epochs: int | None) -> int:
        return settings.training.schedule.length(images, epochs)

    # ------------------------------------------------------------ the literal pipeline

    def reconstruct(self, x: Tensor) -> Tensor:
        """Predict every patch of images from its window, both [N, 3, H, W] from 0 to 1."""
        patches = patches_of(x)
        own = torch.arange(len(self.table), device=x.device)
        predicted = []
        for image in patches:
            predicted.append(self.network(image[self.table], self.table, own))
        return image_of(torch.stack(predicted), self.settings.size)

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
        """Compute 1 - MSGMS, averaged over the channels and then over 21 x 21 pixels: [N, H, W].

        It is 0 beyond the border.
        """
        residual = (1 - similarity_map(x, reconstruction, SCALES)).mean(1, keepdim=True)
        return F.avg_pool2d(residual, FILTER, 1, FILTER // 2)[:, 0]

    # ------------------------------------------------------------ training

    @property
    def _standardises(self) -> bool:
        return self.settings.training.standardised

    def _train(self, fit: Fit, phase: Phase) -> int:
        schedule = self.settings.training.schedule
        if phase.state is None:
            colour = mean_colour(fit.images).float()
            self.network.initialise(torch.Generator().manual_seed(fit.seed), colour)
        optimiser = torch.optim.Adam(
            self.parameters(), schedule.learning_rate, weight_decay=WEIGHT_DECAY
        )
        steps = Steps(fit, phase, [optimiser], fit.steps)
        mean = GaussianMean(PATCH, PATCH).to(self.device)

        def loss_of(step: int, chosen: Indices) -> Tensor:
            optimiser.param_groups[0]["lr"] = schedule.rate(step / fit.steps)
            rng = np.random.default_rng((fit.seed, 1, step))
            image = torch.from_numpy(np.stack([fit.images[index] for index in chosen]))
            table, own = self._draw_windows(len(chosen), rng)
            return self.loss(image, table, own, mean)

        self.train()
        batches = batch_indices(len(fit.images), schedule.batch, fit.seed, steps.start)
        done = steps.run(batches, loss_of)
        self.eval()
        if done == fit.steps:
            phase.finish()
        return done

    def _map_of(self, image: Tensor) -> Tensor:
        """Compute the residuals [N, H, W] of images, uint8 BGR [N, H, W, 3]."""
        x = planes(image, self.dtype)
        return self.residual(x, self.reconstruct(x))

    def _draw_windows(self, images: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw the windows of a step, and one hidden patch in each: [images, k, 49], [images, k].

        Patches are numbered row by row. Every window that lies in an image has the same
        probability, and so has each of its patches.
        """
        rows, columns = self.settings.grid
        shape = (images, self.settings.training.windows)
        top = torch.from_numpy(rng.integers(rows - WINDOW + 1, size=shape))
        left = torch.from_numpy(rng.integers(columns - WINDOW + 1, size=shape))
        offsets = torch.arange(WINDOW)[:, None] * columns + torch.arange(WINDOW)
        table = (top * columns + left)[..., None] + offsets.flatten()
        place = torch.from_numpy(rng.integers(WINDOW * WINDOW, size=(*shape, 1)))
        return table, table.gather(2, place)[..., 0]

    def loss(self, image: Tensor, table: Tensor, own: Tensor, mean: GaussianMean) -> Tensor:
        """Compute the loss of windows of images, uint8 BGR [N, H, W, 3].

        table: the patches of the windows, [N, k, 49]. own: the hidden ones, [N, k]. The loss is the
        mean squared error plus a hundredth of the means of 1 - SSIM and 1 - MSGMS of the patches.
        """
        patches = patches_of(planes(image.to(self.device), torch.float32))
        table = table.to(self.device)
        own = own.to(self.device)
        number = torch.arange(len(image), device=self.device)[:, None]
        windows = patches[number[..., None], table].flatten(0, 1)
        x = patches[number, own].view(-1, 3, PATCH, PATCH)
        with half_precision(self.device):
            predicted = self.network(windows, table.flatten(0, 1), own.flatten())
        y = predicted.float().view_as(x)
        similarity = similarity_loss(x, y, mean) + gradient_loss(x, y, SCALES)
        return F.mse_loss(y, x) + SIMILARITY_WEIGHT * similarity

    # ------------------------------------------------------------ the exported form

    def fused(self) -> nn.Module:
        return build_fused(self, FusedInTra)


class FusedInTra(nn.Module):
    """InTra for export: `backbone` predicts all patches in one batch of their windows."""

    def __init__(self, method: InTra) -> None:
        super().__init__()
        size = method.settings.size
        self.size = size
        self.input = Planes()
        self.backbone = FusedInpaintingTransformer(method.network, method.table, 255)
        filters = (mean_matrix(size[0], FILTER), mean_matrix(size[1], FILTER))
        self.residual = fp32(_Residual(GradientResidual(size, SCALES, 1, filters)))
        self.standardised = fp32(FusedStandardisation(method.standardised))
        self.largest = fp32(Largest())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] of images, uint8 BGR [N, H, W, 3]."""
        x = self.input(image)
        return self.head(x, self.backbone(x))

    def head(self, x: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] from images from 0 to 255 and predicted patches."""
        anomaly_map = self.standardised(self.residual(x, image_of(patches, self.size)))
        return self.largest(anomaly_map), anomaly_map


class _Residual(nn.Module):
    """1 - MSGMS of images from 0 to 255 and reconstructions from 0 to 1, smoothed: [N, H, W]."""

    def __init__(self, residual: GradientResidual) -> None:
        super().__init__()
        self.residual = residual

    def forward(self, x: Tensor, reconstruction: Tensor) -> Tensor:
        anomaly_map: Tensor = self.residual(x[:, None] / 255, reconstruction[:, None])
        return anomaly_map
