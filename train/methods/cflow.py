"""CFLOW-AD: a conditional normalising flow of single feature vectors on each level of the backbone.

Gudovskiy et al., "CFLOW-AD: real-time unsupervised anomaly detection with localization via
conditional normalizing flows" (WACV 2022), with the constants of the authors' code. It keeps the
weights that are best on the test images, and takes the maxima that normalise the map from test
images, too. Here the last weights are kept, and the maxima are those of the good images of the
training.

The light setting reads layer2 and layer3, has half as many couplings, and computes features once,
so that training images are not rotated. It trains for 2000 steps of twice as many positions, with
ten times the learning rate. Its levels take equally many steps: with steps for every position, the
coarser level gets a fifth of them, and its likelihoods stay behind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.options import option
from flawline.runtime.image import Geometry
from flawline.train.backbones import backbone_facts, create_backbone, require_levels
from flawline.train.blocks.fused import (
    FusedMethod,
    Largest,
    Sum,
    build_fused,
    fp32,
)
from flawline.train.blocks.fused_position_flow import AlignedUpsample, FusedPositionFlow
from flawline.train.blocks.position_batches import PositionBatch, PositionSchedule
from flawline.train.blocks.position_flow import (
    build_position_flow,
    initialise_position_flow,
    mean_log_likelihood,
    position_code_2d,
    position_likelihoods,
)
from flawline.train.blocks.stored_levels import RotatedLevels, StoredLevels, stored_levels
from flawline.train.loop import Steps, half_cosine
from flawline.train.method import Fit, Method, MethodSettings, Phase

# The levels of a training are computed once, or again in every pass.
Levels = StoredLevels | RotatedLevels

FIRST_LEVEL = 2
BATCH = 32  # images
PUBLISHED_PASSES = 200
LIGHT_STEPS = 2000
# As in the authors' code, a training has so many meta-epochs. The learning rate is constant in each
# of them, and falls along a cosine to LAST_RATE of its largest value. In the first ones it rises
# linearly from FIRST_RATE instead.
META_EPOCHS = 25
WARM_UP = 2
FIRST_RATE = 0.1
LAST_RATE = 1e-3


@dataclass(frozen=True)
class CFlowSettings(MethodSettings):
    """The settings of CFLOW-AD; none is a flag."""

    last_level: int = option(4, "the levels are layer2 to this one, 3 or 4")
    blocks: int = option(8, "couplings per level")
    positions: int = option(256, "positions of a step")
    equal_steps: bool = option(False, "as many steps for every level as for the smallest one")
    rotation: float = option(5.0, "largest rotation of a training image, in degrees")
    learning_rate: float = option(2e-4, "largest learning rate")


class CFlow(Method):
    """CFLOW-AD on the deeper levels of a residual network."""

    name: ClassVar[str] = "cflow"
    Settings = CFlowSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo", "elpv_mono", "mvtec_bottle")
    # Rounding errors grow with the distance from good images, as in the other flows.
    map_tolerance: ClassVar[float] = 10.0
    trains_on_pixels: ClassVar[bool] = True

    settings: CFlowSettings
    largest: Tensor  # [levels], the largest log-likelihood per channel of good images
    peak: Tensor  # the largest sum of the densities of all levels of good images

    def __init__(self, settings: CFlowSettings) -> None:
        super().__init__(settings)
        self.backbone = create_backbone(settings.backbone, _levels(settings))
        self.grids = self.backbone.grids(*settings.size)
        self.flows = nn.ModuleList()
        for number, (channels, grid) in enumerate(
            zip(self.backbone.channels, self.grids, strict=True)
        ):
            self.flows.append(build_position_flow(channels, settings.blocks))
            self.register_buffer(f"code{number}", position_code_2d(*grid), persistent=False)
        self.register_buffer("largest", torch.zeros(len(self.flows)))
        self.register_buffer("peak", torch.zeros(()))

    @classmethod
    def settings_for(cls, backbone: str) -> CFlowSettings:
        settings = CFlowSettings(backbone, Geometry("stretch", 256, 256))
        if backbone_facts(backbone).light:
            # Chosen on the tuning set, for a training of some minutes.
            light = replace(settings, last_level=3, blocks=4, positions=512, equal_steps=True)
            return replace(light, rotation=0.0, learning_rate=2e-3)
        return settings

    @classmethod
    def steps(cls, settings: CFlowSettings, images: int, epochs: int | None) -> int:
        if epochs is None and backbone_facts(settings.backbone).light:
            return LIGHT_STEPS
        return (epochs or PUBLISHED_PASSES) * _schedule(settings, images).steps_per_pass

    def code(self, level: int) -> Tensor:
        """Return the position code of a level, [channels of the code, h, w]."""
        code: Tensor = self.get_buffer(f"code{level}")
        return code

    # ------------------------------------------------------------ the literal pipeline

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(*self.backbone.extract(image))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] from levels [N, C, h, w].

        The map is the largest density of good images minus the density, summed over the levels.
        """
        anomaly_map = self.peak - self.density(self.likelihoods(levels))
        return anomaly_map.amax((1, 2)), anomaly_map

    def likelihoods(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return log-likelihoods per channel [N, 1, h, w], in nats, of levels [N, C, h, w]."""
        likelihoods = []
        for number, level in enumerate(levels):
            flow = self.flows[number]
            likelihoods.append(position_likelihoods(flow, level, self.code(number)))
        return likelihoods

    def density(self, likelihoods: Sequence[Tensor]) -> Tensor:
        """Return the sum of the upsampled densities, [N, H, W], of log-likelihoods [N, 1, h, w].

        The density of a level is relative to its largest one on good images.
        """
        densities = []
        for number, likelihood in enumerate(likelihoods):
            density = torch.exp(likelihood - self.largest[number])
            densities.append(
                F.interpolate(density, self.settings.size, mode="bilinear", align_corners=True)
            )
        return torch.stack(densities).sum(0)[:, 0]

    # ------------------------------------------------------------ training

    def fit(self, fit: Fit) -> int:
        # The second phase takes the features of the first one, and starts again when interrupted.
        self.eval()
        if self.settings.rotation:
            rotated = RotatedLevels(self.backbone, fit, self.device, self.settings.rotation)
            return self._fit(rotated, fit)
        with stored_levels(self.backbone, fit, self.device) as levels:
            return self._fit(levels, fit)

    def _fit(self, levels: Levels, fit: Fit) -> int:
        done = self._train(levels, fit)
        self._measure_maxima(levels, fit)
        return done

    def _train(self, levels: Levels, fit: Fit) -> int:
        phase = fit.phase("training")
        if phase.done:
            return fit.steps
        if phase.state is None:
            generator = torch.Generator().manual_seed(fit.seed)
            for flow in self.flows:
                initialise_position_flow(flow, generator)
        done = self._train_flows(levels, phase, fit)
        self.eval()
        if done == fit.steps:
            phase.finish()
        return done

    def _train_flows(self, levels: Levels, phase: Phase, fit: Fit) -> int:
        settings = self.settings
        # One per level: those of the other levels must not move in the steps of one level.
        optimisers = []
        for flow in self.flows:
            trained = [weight for weight in flow.parameters() if weight.requires_grad]
            optimisers.append(torch.optim.Adam(trained, settings.learning_rate))
        steps = Steps(fit, phase, optimisers, fit.steps)

        def loss_of(step: int, batch: PositionBatch) -> Tensor:
            rate = settings.learning_rate * rate_share(step / fit.steps)
            for optimiser in optimisers:
                optimiser.param_groups[0]["lr"] = rate
            return self.loss(batch)

        schedule = _schedule(settings, len(fit.images))
        self.train()
        return steps.run(schedule.batches(levels.of_pass, fit.seed, steps.start), loss_of)

    def loss(self, batch: PositionBatch) -> Tensor:
        """Compute the loss of a step: a likelihood in 0..1 per position, in nats, averaged."""
        code = self.code(batch.level).flatten(1).T
        z, log_determinant = self.flows[batch.level](batch.vectors, [code[batch.places]])
        return -F.logsigmoid(mean_log_likelihood(z, log_determinant)).mean()

    @torch.inference_mode()
    def _measure_maxima(self, levels: Levels, fit: Fit) -> None:
        """Take the largest likelihood of each level, then the largest density, of good images."""
        count = len(fit.images)
        likelihoods = []
        for index in range(count):
            likelihoods.append(self.likelihoods(levels.of(np.array([index]))))
            fit.progress("likelihoods of good images", index + 1, count)
        for number, of_level in enumerate(zip(*likelihoods, strict=True)):
            self.largest[number] = torch.stack(of_level).max()
        densities = [self.density(of_image).max() for of_image in likelihoods]
        self.peak.copy_(torch.stack(densities).max())

    # ------------------------------------------------------------ the exported form

    def fused(self) -> nn.Module:
        return build_fused(self, FusedCFlow)


def _levels(settings: CFlowSettings) -> tuple[int, ...]:
    return tuple(range(FIRST_LEVEL, settings.last_level + 1))


def _schedule(settings: CFlowSettings, images: int) -> PositionSchedule:
    """Return the order of the steps over so many images."""
    grids = []
    levels = _levels(settings)
    require_levels(settings.backbone, levels)
    for level in levels:
        stride = backbone_facts(settings.backbone).levels[level].stride
        height, width = settings.size
        grids.append((-(-height // stride), -(-width // stride)))
    positions, equal = settings.positions, settings.equal_steps
    return PositionSchedule(images, BATCH, tuple(grids), positions, equal)


def rate_share(done: float) -> float:
    """Return the learning rate as a share of the largest, after a share `done` of the steps."""
    meta_epochs = done * META_EPOCHS
    if meta_epochs >= WARM_UP:
        return _cosine(math.floor(meta_epochs) / META_EPOCHS)
    last = _cosine(WARM_UP / META_EPOCHS)
    return FIRST_RATE + (last - FIRST_RATE) * meta_epochs / WARM_UP


def _cosine(done: float) -> float:
    return LAST_RATE + (1 - LAST_RATE) * half_cosine(done)


class FusedCFlow(FusedMethod):
    """CFLOW-AD for export; see `FusedPositionFlow` for the flows.

    A resize keeps constants, so that the peak is added to the small maps, a share to each.
    """

    def __init__(self, method: CFlow) -> None:
        super().__init__(method)
        self.flows = nn.ModuleList()
        self.upsamples = nn.ModuleList()
        share = float(method.peak) / len(method.flows)
        for number, grid in enumerate(method.grids):
            largest = float(method.largest[number])
            flow = FusedPositionFlow(method.flows[number], method.code(number), largest, share)
            self.flows.append(flow)
            self.upsamples.append(fp32(AlignedUpsample(grid, method.settings.size)))
        self.sum = fp32(Sum())
        self.largest = fp32(Largest())

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        maps = []
        for number, level in enumerate(levels):
            maps.append(self.upsamples[number](self.flows[number](level)))  # [N, 1, H, W]
        anomaly_map = self.sum(*maps).squeeze(1)
        return self.largest(anomaly_map), anomaly_map
