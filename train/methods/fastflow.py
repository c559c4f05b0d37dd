"""FastFlow: a normalising flow of convolutional couplings on each level of the backbone.

Yu et al., "FastFlow: unsupervised anomaly detection and localization via 2D normalizing flows" (2021), with the
constants of the unofficial implementation that reproduces it (gathierry/FastFlow), for residual networks.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.options import option
from flawline.runtime.image import Geometry
from flawline.train.backbones import backbone_facts, create_backbone
from flawline.train.blocks import fused as rewrites
from flawline.train.blocks.flow import (
    SATURATION,
    Energy,
    FusedFlow,
    build_flow,
    initialise,
    latent,
)
from flawline.train.blocks.fused import FusedMethod, build_fused, fp32
from flawline.train.blocks.patches import collect_features
from flawline.train.loop import Steps, batch_indices
from flawline.train.method import Fit, Method, MethodSettings

BATCH = 32  # images
PUBLISHED_EPOCHS = 500
LIGHT_STEPS = 100
LEARNING_RATE = 1e-3
# Of the three levels' fused flows (see FusedFlow). OpenVINO takes twice the time to gather the planes of the first.
FORMS = ("multiplied", "gathered", "gathered")


@dataclass(frozen=True)
class FastFlowSettings(MethodSettings):
    blocks: int = option(8, "couplings per level")
    alternate: bool = option(
        False, "make every second coupling one of 1x1 convolutions, the rest of 3x3"
    )


class FastFlow(Method):
    """A normalising flow on each of three levels of the backbone."""

    name: ClassVar[str] = "fastflow"
    map_tolerance: ClassVar[float] = 10.0  # as SSNF's: what is far from good is stretched most
    Settings = FastFlowSettings

    settings: FastFlowSettings

    def __init__(self, settings: FastFlowSettings) -> None:
        super().__init__(settings)
        self.backbone = create_backbone(settings.backbone, (1, 2, 3)).requires_grad_(False)
        self.norms = nn.ModuleList()
        self.flows = nn.ModuleList()
        grids = self.backbone.grids(*settings.size)
        self.shapes = []
        for channels, grid in zip(self.backbone.channels, grids, strict=True):
            self.shapes.append((channels, *grid))
            self.norms.append(nn.LayerNorm((channels, *grid)))
            self.flows.append(build_flow(channels, grid, settings.blocks, self._subnet))

    def _subnet(self, number: int, c_in: int, c_out: int) -> SubNet:
        kernel = 1 if self.settings.alternate and number % 2 else 3
        return SubNet(c_in, c_out, kernel)

    @classmethod
    def settings_for(cls, backbone: str) -> FastFlowSettings:
        alternate = not backbone_facts(backbone).light
        return FastFlowSettings(backbone, Geometry("stretch", 256, 256), alternate=alternate)

    @classmethod
    def steps(cls, settings: FastFlowSettings, images: int, epochs: int | None) -> int:
        if epochs is None and backbone_facts(settings.backbone).light:
            return LIGHT_STEPS
        return (epochs or PUBLISHED_EPOCHS) * math.ceil(images / BATCH)

    # ------------------------------------------------------------------ the literal pipeline

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(*self.backbone.extract(image))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        """Levels [N, C, h, w] to score [N] and map [N, H, W]: the negative density of each level's mean energy."""
        size = self.settings.size
        maps = []
        for level, norm, flow in zip(levels, self.norms, self.flows, strict=True):
            z, _ = flow(norm(level))
            anomaly_map = -torch.exp(-0.5 * z.square().mean(1, keepdim=True))
            maps.append(
                F.interpolate(anomaly_map, size=size, mode="bilinear", align_corners=False)[:, 0]
            )
        anomaly_map = torch.stack(maps).mean(0)
        return anomaly_map.amax((1, 2)), anomaly_map

    # ------------------------------------------------------------------ training

    def fit(self, fit: Fit) -> int:
        trained = nn.ModuleList([self.norms, self.flows])
        device = next(trained.parameters()).device
        optimiser = torch.optim.Adam(
            [p for p in trained.parameters() if p.requires_grad], LEARNING_RATE, weight_decay=1e-5
        )
        phase = fit.phase("training")
        if phase.state is None:
            generator = torch.Generator().manual_seed(fit.seed)
            for flow in self.flows:
                initialise(flow, generator)
        lengths = [math.prod(shape) for shape in self.shapes]

        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            self.eval()
            features = collect_features(
                fit.images, self._flat_levels, device, folder, fit.progress
            )  # [n, all levels]

            def loss_of(step: int, chosen: Any) -> Tensor:
                levels = torch.split(torch.from_numpy(features[chosen]).to(device), lengths, 1)
                shaped = []
                for level, shape in zip(levels, self.shapes, strict=True):
                    shaped.append(level.view(-1, *shape))
                return self.loss(shaped)

            self.train()
            self.backbone.eval()
            steps = Steps(fit, phase, [optimiser], fit.steps)
            batches = batch_indices(len(features), BATCH, fit.seed, steps.start)
            done = steps.run(batches, loss_of)
        self.eval()
        return done

    def _flat_levels(self, image: Tensor) -> Tensor:
        return torch.cat([level.flatten(1) for level in self.backbone.extract(image)], 1)

    def loss(self, levels: Sequence[Tensor]) -> Tensor:
        """Energy less log-determinant, summed over dimensions and levels, the mean over the images."""
        total = torch.zeros((), device=levels[0].device)
        for level, norm, flow in zip(levels, self.norms, self.flows, strict=True):
            z, log_det = latent(flow, norm(level), autocast=True)
            total = total + (0.5 * z.square().sum((1, 2, 3)) - log_det).mean()
        return total

    def fused(self, form: str | None = None) -> nn.Module:
        """`form` is one for all levels instead of each level's own."""
        forms = (form,) * len(self.flows) if form else FORMS
        return build_fused(self, lambda method: FusedFastFlow(method, forms))


class SubNet(nn.Module):
    """Scale and shift of a coupling: two convolutions with a ReLU, here one that saturates, between them."""

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(c_in, c_in, kernel, padding=kernel // 2)
        self.last = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        predicted: Tensor = self.last(self.first(x).clamp(0, SATURATION))
        return predicted

    def fused_middle(self) -> nn.Module:
        return nn.Hardtanh(0, SATURATION)


class FusedFastFlow(FusedMethod):
    """See `FusedFlow` for the couplings."""

    def __init__(self, method: FastFlow, forms: Sequence[str]) -> None:
        super().__init__(method)
        size = method.settings.size
        self.norms = nn.ModuleList()
        self.flows = nn.ModuleList()
        self.densities = nn.ModuleList()
        self.upsamples = nn.ModuleList()
        for norm, flow, form, shape in zip(
            method.norms, method.flows, forms, method.shapes, strict=True
        ):
            fused_flow = FusedFlow(flow, form)
            self.norms.append(fp32(norm))
            self.flows.append(fused_flow)
            self.densities.append(fp32(_Density(fused_flow.scale, 1 / len(forms))))
            self.upsamples.append(fp32(rewrites.Upsample(shape[1:], size)))
        self.sum = fp32(_Sum())
        self.largest = fp32(rewrites.Largest())

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        parts = zip(levels, self.norms, self.flows, self.densities, self.upsamples, strict=True)
        anomaly_map = self.sum(
            *(upsample(density(flow(norm(x)))) for x, norm, flow, density, upsample in parts)
        ).squeeze(1)
        return self.largest(anomaly_map), anomaly_map


class _Density(nn.Module):
    """A level's part of the map [N, 1, h, w] of its latent [N, C, h, w], to be scaled."""

    def __init__(self, scale: Tensor, share: float) -> None:
        super().__init__()
        self.energy, self.share = Energy(scale), share

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-self.energy(x)) * -self.share


class _Sum(nn.Module):
    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = first + other
        return first
