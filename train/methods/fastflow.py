"""FastFlow: a normalising flow of convolutional couplings on each level of the backbone.

Yu et al., "FastFlow: unsupervised anomaly detection and localization via 2D normalizing flows"
(2021), with the constants of the unofficial implementation that reproduces it (gathierry/FastFlow),
for residual networks.
"""

from __future__ import annotations

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
from flawline.train.backbones import backbone_facts, create_backbone
from flawline.train.blocks.flow import (
    HIDDEN_CLAMP,
    LATENT_CLAMP,
    build_flow,
    flow_forward,
    initialise_flow,
)
from flawline.train.blocks.flow_scores import MeanEnergy
from flawline.train.blocks.fused import FusedMethod, Largest, Sum, Upsample, build_fused, fp32
from flawline.train.blocks.fused_flow import FusedFlow
from flawline.train.blocks.stored_levels import StoredLevels, stored_levels
from flawline.train.loop import Steps, batch_indices, choose_steps
from flawline.train.method import Fit, Method, MethodSettings

BATCH = 32  # images
PUBLISHED_EPOCHS = 500
LIGHT_STEPS = 100
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-5
# Forms of the fused flows of the three levels, see FusedFlow. OpenVINO needs twice the time to
# gather the large planes of the first level.
LEVEL_FORMS = ("multiplied", "gathered", "gathered")


@dataclass(frozen=True)
class FastFlowSettings(MethodSettings):
    """The settings of FastFlow; none is a flag."""

    blocks: int = option(8, "couplings per level")
    alternate: bool = option(False, "every second coupling has 1x1 convolutions instead of 3x3")


class FastFlow(Method):
    """FastFlow on three levels of a residual network."""

    name: ClassVar[str] = "fastflow"
    Settings = FastFlowSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo", "elpv_mono")
    # Rounding errors grow with the distance from good images, as in SSNF.
    map_tolerance: ClassVar[float] = 10.0

    settings: FastFlowSettings

    def __init__(self, settings: FastFlowSettings) -> None:
        super().__init__(settings)
        self.backbone = create_backbone(settings.backbone, (1, 2, 3))
        self.norms = nn.ModuleList()
        self.flows = nn.ModuleList()
        self.grids = self.backbone.grids(*settings.size)
        for channels, grid in zip(self.backbone.channels, self.grids, strict=True):
            self.norms.append(nn.LayerNorm((channels, *grid)))
            self.flows.append(build_flow(channels, grid, settings.blocks, self._subnetwork))

    def _subnetwork(self, number: int, c_in: int, c_out: int) -> ConvolutionSubnetwork:
        kernel = 3
        if self.settings.alternate and number % 2 == 1:
            kernel = 1
        return ConvolutionSubnetwork(c_in, c_out, kernel)

    @classmethod
    def settings_for(cls, backbone: str) -> FastFlowSettings:
        geometry = Geometry("stretch", 256, 256)
        return FastFlowSettings(backbone, geometry, alternate=not backbone_facts(backbone).light)

    @classmethod
    def steps(cls, settings: FastFlowSettings, images: int, epochs: int | None) -> int:
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
        """Compute score [N] and map [N, H, W] from levels [N, C, h, w].

        The map is the mean over the levels of the negative density of the mean energy.
        """
        maps = []
        for level, norm, flow in zip(levels, self.norms, self.flows, strict=True):
            z, _ = flow(norm(level))
            density = torch.exp(-0.5 * z.square().mean(1, keepdim=True))
            level_map = F.interpolate(
                -density, size=self.settings.size, mode="bilinear", align_corners=False
            )
            maps.append(level_map[:, 0])
        anomaly_map = torch.stack(maps).mean(0)
        return anomaly_map.amax((1, 2)), anomaly_map

    # ------------------------------------------------------------ training

    def fit(self, fit: Fit) -> int:
        self.eval()
        with stored_levels(self.backbone, fit, self.device) as levels:
            return self._train(levels, fit)

    def _train(self, levels: StoredLevels, fit: Fit) -> int:
        """Train norms and flows on the levels of the good images."""
        phase = fit.phase("training")
        if phase.state is None:
            generator = torch.Generator().manual_seed(fit.seed)
            for flow in self.flows:
                initialise_flow(flow, generator)
        trained = []
        for parameter in nn.ModuleList([self.norms, self.flows]).parameters():
            if parameter.requires_grad:
                trained.append(parameter)
        optimiser = torch.optim.Adam(trained, LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        steps = Steps(fit, phase, [optimiser], fit.steps)

        def loss_of(_: int, chosen: npt.NDArray[np.int64]) -> Tensor:
            return self.loss(levels.of(chosen))

        self.train()
        done = steps.run(batch_indices(len(levels), BATCH, fit.seed, steps.start), loss_of)
        self.eval()
        return done

    def loss(self, levels: Sequence[Tensor]) -> Tensor:
        """Compute the negative log-likelihood of levels [N, C, h, w], without its constant.

        It is summed over dimensions and levels, and averaged over the images.
        """
        total = torch.zeros((), device=levels[0].device)
        for level, norm, flow in zip(levels, self.norms, self.flows, strict=True):
            z, log_determinant = flow_forward(flow, norm(level), autocast=True)
            energy = 0.5 * z.square().sum((1, 2, 3))
            total = total + (energy - log_determinant).mean()
        return total

    # ------------------------------------------------------------ the exported form

    def fused(self, form: str | None = None) -> nn.Module:
        """Return the exported module; `form` replaces the form of the flow on every level."""
        forms = LEVEL_FORMS if form is None else (form,) * len(LEVEL_FORMS)
        return build_fused(self, lambda exact: FusedFastFlow(exact, forms))


class ConvolutionSubnetwork(nn.Module):
    """Predicts log-scale and shift of a coupling: two convolutions with a ReLU between them.

    Unlike in the paper, the ReLU saturates at HIDDEN_CLAMP.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(c_in, c_in, kernel, padding=kernel // 2)
        self.last = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.clamp(-LATENT_CLAMP, LATENT_CLAMP)).clamp(0, HIDDEN_CLAMP)
        prediction: Tensor = self.last(hidden)
        return prediction

    def fused_body(self) -> nn.Module:
        return nn.Hardtanh(0, HIDDEN_CLAMP)


class FusedFastFlow(FusedMethod):
    """FastFlow for export; see `FusedFlow` for the couplings."""

    def __init__(self, method: FastFlow, forms: Sequence[str]) -> None:
        super().__init__(method)
        self.norms = nn.ModuleList()
        self.flows = nn.ModuleList()
        self.densities = nn.ModuleList()
        self.upsamples = nn.ModuleList()
        for level, form in enumerate(forms):
            flow = FusedFlow(method.flows[level], form)
            self.norms.append(fp32(method.norms[level]))
            self.flows.append(flow)
            self.densities.append(fp32(_LevelDensity(flow.scale, 1 / len(forms))))
            self.upsamples.append(fp32(Upsample(method.grids[level], method.settings.size)))
        self.sum = fp32(Sum())
        self.largest = fp32(Largest())

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        maps = []
        for number, level in enumerate(levels):
            z = self.flows[number](self.norms[number](level))
            density = self.densities[number](z)
            maps.append(self.upsamples[number](density))  # [N, 1, H, W]
        anomaly_map = self.sum(*maps).squeeze(1)
        return self.largest(anomaly_map), anomaly_map


class _LevelDensity(nn.Module):
    """The part of a level in the map: unscaled latent [N, C, h, w] to [N, 1, h, w]."""

    def __init__(self, scale: Tensor, share: float) -> None:
        super().__init__()
        self.energy = MeanEnergy(scale)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-self.energy(x)) * -self.share
