"""CS-Flow: one normalising flow over the features of an image at three scales.

Rudolph et al., "Fully convolutional cross-scale-flows for image-based defect detection" (2022),
with the constants of the authors' code (marco-rudolph/cs-flow): EfficientNet-B5 on images of 768,
384 and 192 pixels. Unlike the authors, who report the best result on test images of any epoch, the
weights of the last step count. The light setting is a ResNet on images of 256, 128 and 64 pixels
with a small flow, whose features are standardised first and get noise in training. Its learning
rate is 25 times as high and falls to zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.options import option
from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.backbones import backbone_facts
from flawline.train.backbones.pyramid import ImagePyramid
from flawline.train.blocks.averaged_levels import channel_statistics
from flawline.train.blocks.cross_scale_flow import SCALES, CrossScaleFlow
from flawline.train.blocks.flow_scores import log_energy
from flawline.train.blocks.fused import FusedMethod, Upsample, build_fused, fp32
from flawline.train.blocks.fused_cross_scale_flow import FusedCrossScaleFlow
from flawline.train.blocks.stored_levels import StoredLevels, flatten_levels, stored_levels
from flawline.train.loop import Steps, batch_indices, choose_steps, half_cosine
from flawline.train.method import Fit, Method, MethodSettings, require_multiple

BATCH = 16  # images
PUBLISHED_EPOCHS = 240
LIGHT_STEPS = 240
LEARNING_RATE = 2e-4
WEIGHT_DECAY = 1e-5
LARGEST_GRADIENT = 1.0
KERNELS = (3, 3, 3, 5)
# The image is read whole, and at half and a quarter of its height and width.
STEPS_OF_SCALES = (1, 2, 4)


@dataclass(frozen=True)
class CSFlowSettings(MethodSettings):
    """The settings of CS-Flow; none is a flag."""

    level: int = option(3, "number of the level of the backbone that is read")
    hidden: int = option(1024, "hidden channels of a sub-network")
    kernels: tuple[int, ...] = option(KERNELS, "size of the convolutions of each block")
    standardised: bool = option(False, "standardise features by the statistics of good images")
    noise: float = option(0.0, "deviation of the noise that training adds to the features")
    learning_rate: float = option(LEARNING_RATE, "learning rate at the start")
    epsilon: float = option(1e-4, "epsilon of Adam")
    decay: bool = option(False, "let the learning rate fall to zero along a cosine")


class CSFlow(Method):
    """CS-Flow on one level of a convolutional network."""

    name: ClassVar[str] = "csflow"
    Settings = CSFlowSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo", "elpv_mono", "mvtec_bottle")
    # Rounding errors grow with the distance from good images, as in FastFlow.
    map_tolerance: ClassVar[float] = 10.0
    smallest_size: ClassVar[int] = 64

    settings: CSFlowSettings
    mean: Tensor  # [scales, C], of the features of good images
    std: Tensor  # [scales, C]

    def __init__(self, settings: CSFlowSettings) -> None:
        super().__init__(settings)
        self.backbone = ImagePyramid(settings.backbone, (settings.level,), STEPS_OF_SCALES)
        # Each grid has exactly half the height and width of the one before.
        require_multiple(settings.size, self.backbone.strides[-1], self.name)
        self.grids = self.backbone.grids(*settings.size)
        _require_halves(self.grids, settings.backbone)
        channels = self.backbone.channels[0]
        self.register_buffer("mean", torch.zeros(SCALES, channels))
        self.register_buffer("std", torch.ones(SCALES, channels))
        self.flow = CrossScaleFlow(channels, settings.hidden, settings.kernels)

    @classmethod
    def settings_for(cls, backbone: str) -> CSFlowSettings:
        facts = backbone_facts(backbone)
        if facts.light:
            geometry = Geometry("stretch", 256, 256)
            return CSFlowSettings(
                backbone,
                geometry,
                hidden=64,
                kernels=(3, 3, 3),
                standardised=True,
                # Many features of a ReLU are exactly 0 in most images. Without noise the flow
                # stretches these without limit, and with them the rounding errors of FP16.
                noise=0.2,
                learning_rate=5e-3,
                # The gradients of the loss per dimension are smaller than the published one.
                epsilon=1e-8,
                decay=True,
            )
        return CSFlowSettings(backbone, Geometry("stretch", 768, 768), level=max(facts.levels))

    @classmethod
    def steps(cls, settings: CSFlowSettings, images: int, epochs: int | None) -> int:
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

    def head(self, *scales: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] from features [N, C, h, w] of each scale."""
        latents, _ = self.flow(self.standardised(scales))
        return self.judge(latents)

    def judge(self, latents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] from latents [N, C, h, w] of each scale.

        The energy of an image is the mean of z^2 / 2 over the latents of all scales, that of a
        position its mean over the channels of the finest scale. The authors' code scores by the
        energies. Here the score is their logarithm (see `log_energy`), and the map is
        log(1 + energy), which is 0 or more.
        """
        energy = flatten_levels(latents).square().mean(1) / 2
        per_position = torch.log1p(latents[0].square().mean(1, keepdim=True) / 2)
        anomaly_map = F.interpolate(
            per_position, size=self.settings.size, mode="bilinear", align_corners=False
        )
        return log_energy(energy), anomaly_map[:, 0]

    def standardised(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """Standardise features [N, C, h, w] of each scale by the statistics of good images."""
        results = []
        for number, scale in enumerate(scales):
            mean = self.mean[number, :, None, None]
            results.append((scale - mean) / self.std[number, :, None, None])
        return results

    # ------------------------------------------------------------ training

    def fit(self, fit: Fit) -> int:
        self.eval()
        with stored_levels(self.backbone, fit, self.device) as levels:
            return self._train(levels, fit)

    def _train(self, levels: StoredLevels, fit: Fit) -> int:
        """Train the flow on the levels of the good images."""
        settings = self.settings
        phase = fit.phase("training")
        if phase.state is None:
            self.flow.initialise(torch.Generator().manual_seed(fit.seed))
            if settings.standardised:
                self._set_statistics(levels.of_all())
        weights = list(self.flow.parameters())
        optimiser = torch.optim.Adam(
            weights, settings.learning_rate, eps=settings.epsilon, weight_decay=WEIGHT_DECAY
        )
        steps = Steps(fit, phase, [optimiser], fit.steps)

        def clip_gradient(*_: object) -> None:
            nn.utils.clip_grad_norm_(weights, LARGEST_GRADIENT)

        optimiser.register_step_pre_hook(clip_gradient)

        def loss_of(step: int, chosen: npt.NDArray[np.int64]) -> Tensor:
            if settings.decay:
                rate = settings.learning_rate * half_cosine(step / fit.steps)
                optimiser.param_groups[0]["lr"] = rate
            scales = self.standardised(levels.of(chosen))
            # A generator per step, so that a run that is resumed continues exactly.
            generator = torch.Generator().manual_seed((fit.seed << 32) + step)
            return self.loss(self._noisy(scales, generator))

        self.train()
        done = steps.run(batch_indices(len(levels), BATCH, fit.seed, steps.start), loss_of)
        self.eval()
        return done

    def _set_statistics(self, scales: Sequence[Tensor]) -> None:
        """Take mean and standard deviation of the channels of every scale, [n, C, h, w] each."""
        for number, scale in enumerate(scales):
            mean, std = channel_statistics(scale.numpy())
            self.mean[number] = mean
            self.std[number] = std

    def _noisy(self, scales: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Add Gaussian noise to standardised features [N, C, h, w], where the settings want it."""
        if not self.settings.noise:
            return list(scales)
        results = []
        for scale in scales:
            drawn = torch.randn(scale.shape, generator=generator).to(scale.device)
            results.append(scale + self.settings.noise * drawn)
        return results

    def loss(self, scales: Sequence[Tensor]) -> Tensor:
        """Compute the negative log-likelihood of standardised features, without its constant.

        It is divided by the number of dimensions and averaged over the images. scales: [N, C, h, w]
        each.
        """
        latents, log_determinant = self.flow(scales, autocast=True)
        flat = flatten_levels(latents)
        energy = 0.5 * flat.square().sum(1)
        loss: Tensor = (energy - log_determinant).mean() / flat.shape[1]
        return loss

    # ------------------------------------------------------------ the exported form

    def fused(self) -> nn.Module:
        return build_fused(self, FusedCSFlow)


def _require_halves(grids: Sequence[tuple[int, int]], backbone: str) -> None:
    """Raise TrainError unless each grid has half the height and width of the one before.

    Those of a network that does not pad its poolings have not, whatever the size of the image.
    """
    for finer, coarser in itertools.pairwise(grids):
        if finer != (2 * coarser[0], 2 * coarser[1]):
            raise TrainError(
                f"backbone {backbone}: its maps of an image and of half of it have {finer[1]} and "
                f"{coarser[1]} columns, and csflow needs exactly half as many; choose a residual "
                "network"
            )


class FusedCSFlow(FusedMethod):
    """CS-Flow for export; see `FusedCrossScaleFlow`."""

    def __init__(self, method: CSFlow) -> None:
        super().__init__(method)
        self.flow = FusedCrossScaleFlow(method.flow, method.mean, method.std)
        self.score = fp32(_Score(method.grids))
        self.logarithm = fp32(_Logarithm())
        self.upsample = fp32(Upsample(method.grids[0], method.settings.size))

    def head(self, *scales: Tensor) -> tuple[Tensor, Tensor]:
        energies = self.flow(scales)
        anomaly_map = self.upsample(self.logarithm(energies[0])).squeeze(1)
        return self.score(*energies), anomaly_map


class _Logarithm(nn.Module):
    """log(1 + energy); a module, so that it can be marked FP32."""

    def forward(self, energy: Tensor) -> Tensor:
        return torch.log1p(energy)


class _Score(nn.Module):
    """`log_energy` of the mean of all positions: energies [N, 1, h, w] of each scale to [N]."""

    def __init__(self, grids: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.share = 1 / sum(height * width for height, width in grids)

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        total = first.sum((1, 2, 3))
        for other in others:
            total = total + other.sum((1, 2, 3))
        return log_energy(total * self.share)
