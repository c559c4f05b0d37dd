"""RIAD: a U-net that completes hidden cells of good images, judged by the gradients of the result.

Zavrtanik, Kristan and Skočaj, "Reconstruction by inpainting for visual anomaly detection" (Pattern
Recognition 2021), with the constants of a public re-implementation (taikiinoue45/RIAD). That code
draws new masks for every test image and keeps the weights with the smallest loss on a part of the
good images. Here the masks of an inspection are drawn once, with the seed of the training, because
an exported graph must give the same score for the same image, and the last weights are kept.

The light setting standardises the residuals at every position by their mean and deviation on the
good images, since they are largest where a good part cannot be completed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.runtime.image import Geometry
from flawline.train.backbones.torchvision_files import initialise
from flawline.train.blocks.disjoint_masks import disjoint_masks
from flawline.train.blocks.fused import FoldedInput, Largest, build_fused, fold_batchnorm, fp32
from flawline.train.blocks.gradient_similarity import (
    GradientResidual,
    gradient_loss,
    mean_matrix,
    similarity_map,
)
from flawline.train.blocks.inpainting_unet import UNIT, InpaintingUNet
from flawline.train.blocks.pictures import LIGHT, PUBLISHED, PictureSettings
from flawline.train.blocks.schedule import Schedule
from flawline.train.blocks.standardised_maps import (
    FusedStandardisation,
    StandardisedMaps,
    StandardisedMethod,
)
from flawline.train.blocks.structural_similarity import GaussianMean, similarity_loss
from flawline.train.loop import Indices, Steps, batch_indices, half_precision
from flawline.train.method import Fit, Phase, require_multiple

# Parts into which the cells of each side are divided.
PARTS = 3
SCALES = 4
GREY = 127.5
WEIGHT_DECAY = 1e-5


class Training(NamedTuple):
    """The network, how it is trained, and how its residuals become a map.

    width: channels of the network at full size. cells: sides of the hidden cells in pixels.
    filter: side of the mean filter of the map, in pixels. standardised: whether the map is.
    """

    width: int
    cells: tuple[int, ...]
    filter: int
    schedule: Schedule
    standardised: bool


TRAININGS = {
    LIGHT: Training(
        width=8,
        cells=(8, 16),
        filter=3,
        schedule=Schedule(batch=4, learning_rate=2e-3, steps=600),
        standardised=True,
    ),
    PUBLISHED: Training(
        width=64,
        cells=(2, 4, 8, 16),
        filter=21,
        schedule=Schedule(batch=4, learning_rate=1e-4, epochs=300, drops=()),
        standardised=False,
    ),
}


@dataclass(frozen=True)
class RIADSettings(PictureSettings):
    """The settings of RIAD; the published one is for images of 256 x 256 pixels."""

    @property
    def training(self) -> Training:
        """The width of the network, and how it is trained."""
        return TRAININGS[self.setting]


class RIAD(StandardisedMethod):
    """RIAD with masks of several sizes, each of which hides the image in three parts."""

    name: ClassVar[str] = "riad"
    Settings = RIADSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo", "elpv_mono", "mvtec_bottle")

    settings: RIADSettings
    # bool [3 for each side of cells, 1, H, W]: the masks of an inspection, those of one side in
    # succession.
    kept: Tensor

    def __init__(self, settings: RIADSettings) -> None:
        super().__init__(settings)
        require_multiple(settings.size, UNIT, "RIAD")
        cells = settings.training.cells
        masks = torch.zeros(len(cells) * PARTS, 1, *settings.size, dtype=torch.bool)
        self.register_buffer("kept", masks)
        self.standardised = StandardisedMaps(settings.size)
        self.network = InpaintingUNet(settings.training.width)
        self._draw_masks(0)

    @classmethod
    def settings_for(cls, backbone: str) -> RIADSettings:
        return RIADSettings("", Geometry("stretch", 128, 128))

    @classmethod
    def steps(cls, settings: RIADSettings, images: int, epochs: int | None) -> int:
        return settings.training.schedule.length(images, epochs)

    # ------------------------------------------------------------ the literal pipeline

    def reconstruct(self, x: Tensor) -> list[Tensor]:
        """Compute the reconstructions of images with the masks of an inspection, [N, 3, H, W] each.

        There is one for each side of the cells.
        """
        return [self.complete(x, kept) for kept in torch.split(self.kept, PARTS)]

    def complete(self, x: Tensor, kept: Tensor) -> Tensor:
        """Complete every part of images [N, 3, H, W] from the rest; kept: masks [PARTS, 1, H, W].

        The images are from -1 to 1, and hidden pixels are 0, a medium grey.
        """
        total = torch.zeros_like(x)
        for mask in kept.to(x.dtype):
            total = total + torch.tanh(self.network(x * mask)) * (1 - mask)
        return total

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = normalised(image, self.dtype)
        return self.judge(x, self.reconstruct(x))

    def judge(self, x: Tensor, reconstructions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] from images and reconstructions, [N, 3, H, W] each.

        The map is the residual, standardised in the light setting, and the score its largest value.
        """
        anomaly_map = self.standardised(self.residual(x, reconstructions))
        return anomaly_map.amax((1, 2)), anomaly_map

    def residual(self, x: Tensor, reconstructions: Sequence[Tensor]) -> Tensor:
        """Compute 1 - MSGMS, averaged over channels and reconstructions, and smoothed: [N, H, W].

        It is 0 beyond the border.
        """
        maps = []
        for reconstruction in reconstructions:
            maps.append((1 - similarity_map(x, reconstruction, SCALES)).mean(1))
        side = self.settings.training.filter
        residual = torch.stack(maps).mean(0)[:, None]
        return F.avg_pool2d(residual, side, 1, side // 2)[:, 0]

    # ------------------------------------------------------------ training

    @property
    def _standardises(self) -> bool:
        return self.settings.training.standardised

    def _train(self, fit: Fit, phase: Phase) -> int:
        training = self.settings.training
        schedule = training.schedule
        if phase.state is None:
            initialise(self.network, fit.seed)
            self._draw_masks(fit.seed)
        optimiser = torch.optim.Adam(
            self.parameters(), schedule.learning_rate, weight_decay=WEIGHT_DECAY
        )
        steps = Steps(fit, phase, [optimiser], fit.steps)
        mean = GaussianMean(*self.settings.size).to(self.device)

        def loss_of(step: int, chosen: Indices) -> Tensor:
            optimiser.param_groups[0]["lr"] = schedule.rate(step / fit.steps)
            rng = np.random.default_rng((fit.seed, 1, step))
            images = [fit.images[index] for index in chosen]
            cell = int(rng.choice(training.cells))
            kept = disjoint_masks(self.settings.size, cell, PARTS, rng)
            return self.loss(torch.from_numpy(np.stack(images)), kept, mean)

        self.train()
        batches = batch_indices(len(fit.images), schedule.batch, fit.seed, steps.start)
        done = steps.run(batches, loss_of)
        self.eval()
        if done == fit.steps:
            phase.finish()
        return done

    def _map_of(self, image: Tensor) -> Tensor:
        """Compute the residuals [N, H, W] of images, uint8 BGR [N, H, W, 3]."""
        x = normalised(image, self.dtype)
        return self.residual(x, self.reconstruct(x))

    def _draw_masks(self, seed: int) -> None:
        """Draw the masks of an inspection."""
        rng = np.random.default_rng((seed, 2))
        masks = []
        for cell in self.settings.training.cells:
            masks.append(disjoint_masks(self.settings.size, cell, PARTS, rng))
        self.kept.copy_(torch.cat(masks))

    def loss(self, image: Tensor, kept: Tensor, mean: GaussianMean) -> Tensor:
        """Compute the loss of images, uint8 BGR [N, H, W, 3], with masks [PARTS, 1, H, W].

        It is the mean squared error plus the means of 1 - SSIM and 1 - MSGMS.
        """
        x = normalised(image.to(self.device), torch.float32)
        masks = kept.to(self.device, torch.float32)[:, None]
        hidden = (x * masks).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with half_precision(x.device):
            logits = self.network(hidden)
        completed = torch.tanh(logits.float()).view(PARTS, *x.shape)
        y = (completed * (1 - masks)).sum(0)
        structure = similarity_loss((x + 1) / 2, (y + 1) / 2, mean)
        return F.mse_loss(y, x) + structure + gradient_loss(x, y, SCALES)

    # ------------------------------------------------------------ the exported form

    def fused(self) -> nn.Module:
        return build_fused(self, FusedRIAD)


def normalised(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Return images, uint8 BGR [N, H, W, 3], as [N, 3, H, W] from -1 to 1."""
    return image.permute(0, 3, 1, 2).to(dtype) / GREY - 1


class FusedRIAD(nn.Module):
    """RIAD for export: the masked copies of an image are one batch, BatchNorm is folded.

    `backbone` is the network with the masks before it. Each pixel is hidden in one copy of each
    size of the cells, so the values of that copy are chosen before tanh, for a third of the values.
    """

    def __init__(self, method: RIAD) -> None:
        super().__init__()
        # The masks come after the subtraction, since a hidden pixel is 0 after it.
        self.input = FoldedInput(torch.full((3,), GREY, dtype=torch.float64))
        self.backbone = _Passes(method.kept, fold_batchnorm(method.network))
        self.completed = fp32(_Completed(method.kept))
        size = method.settings.size
        training = method.settings.training
        filters = (mean_matrix(size[0], training.filter), mean_matrix(size[1], training.filter))
        residual = GradientResidual(size, SCALES, len(training.cells), filters)
        self.residual = fp32(residual)
        self.standardised = fp32(FusedStandardisation(method.standardised))
        self.largest = fp32(Largest())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] of images, uint8 BGR [N, H, W, 3]."""
        x = self.input(image)
        return self.head(x, self.backbone(x))

    def head(self, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] from images minus grey and logits [MN, 3, H, W]."""
        anomaly_map = self.standardised(self.residual(*self.completed(x, logits)))
        return self.largest(anomaly_map), anomaly_map


class _Passes(nn.Module):
    """Images minus grey [N, 3, H, W] to the network's results for all M masks, [MN, 3, H, W]."""

    kept: Tensor

    def __init__(self, kept: Tensor, network: InpaintingUNet) -> None:
        super().__init__()
        # Numbers, because the exporter writes a Shape for those that it reads from a tensor.
        self.size = (kept.shape[2], kept.shape[3])
        self.register_buffer("kept", kept.double())
        self.network = network
        weight = network.first.conv1.weight
        weight.data = weight.data / GREY

    def forward(self, x: Tensor) -> Tensor:
        copies = x[:, None] * self.kept
        logits: Tensor = self.network(copies.reshape(-1, 3, *self.size))
        return logits


class _Completed(nn.Module):
    """The images [N, 1, 3, H, W] and their reconstructions [N, K, 3, H, W], all from -1 to 1.

    K is the number of sides of cells.
    """

    hidden: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        cells = len(kept) // PARTS
        shape = (cells, PARTS, 1, *kept.shape[2:])
        self.register_buffer("hidden", (~kept).double().view(shape))
        self.shape = (-1, cells, PARTS, 3, *kept.shape[2:])

    def forward(self, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        chosen = (logits.reshape(self.shape) * self.hidden).sum(2)
        return x[:, None] / GREY, torch.tanh(chosen)
