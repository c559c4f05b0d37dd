"""FastFlow: a normalising flow of convolutional couplings on each level of the backbone.

Yu et al., "FastFlow: unsupervised anomaly detection and localization via 2D normalizing flows" (2021), with the
constants of the unofficial implementation that reproduces it (gathierry/FastFlow), for residual networks.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.runtime.image import Image
from flawline.train.backbones.resnet import MEAN_RGB, STD_RGB, Trunk
from flawline.train.blocks import fused as fuse
from flawline.train.blocks.flow import (
    SATURATION,
    Energy,
    FusedFlow,
    build_flow,
    initialise,
    islands,
    latent,
)
from flawline.train.blocks.patches import collect
from flawline.train.loop import batches, deadline_of, run_steps
from flawline.train.method import Budget, Method, Save
from flawline.train.progress import Progress

BATCH = 32  # images
PUBLISHED_EPOCHS = 500
LIGHT_STEPS = 100
LEARNING_RATE = 1e-3
# Of the three levels' fused flows (see FusedFlow). OpenVINO takes twice the time to gather the planes of the first.
FORMS = ("multiplied", "gathered", "gathered")


class FastFlow(Method):
    """`blocks` couplings per level; `alternate` makes every second one of 1x1 convolutions, the rest of 3x3."""

    name: ClassVar[str] = "fastflow"
    map_tolerance: ClassVar[float] = 10.0  # as SSNF's: what is far from good is stretched most

    def __init__(
        self, backbone: str, geometry: dict[str, Any], blocks: int = 8, alternate: bool = False
    ) -> None:
        super().__init__(backbone=backbone, geometry=geometry, blocks=blocks, alternate=alternate)
        self.fp32_islands = (
            *(
                f"/{part}.{level}"
                for level in range(3)
                for part in ("norms", "densities", "upsamples")
            ),
            *(
                island
                for level, form in enumerate(FORMS)
                for island in islands(f"/flows.{level}", blocks, form)
            ),
            "/sum",
            "/largest",
        )
        self.trunk = Trunk(backbone, (1, 2, 3)).requires_grad_(False)
        self.norms, self.flows = nn.ModuleList(), nn.ModuleList()
        size = self.geometry.height, self.geometry.width
        self.shapes = [
            (channels, -(-size[0] // stride), -(-size[1] // stride))
            for channels, stride in zip(self.trunk.channels, (4, 8, 16), strict=True)
        ]
        for shape in self.shapes:
            self.norms.append(nn.LayerNorm(shape))
            self.flows.append(
                build_flow(
                    shape[0],
                    shape[1:],
                    blocks,
                    lambda n, i, o: SubNet(i, o, 1 if alternate and n % 2 else 3),
                )
            )

    @classmethod
    def defaults(cls, backbone: str) -> dict[str, Any]:
        geometry = {"kind": "stretch", "height": 256, "width": 256}
        return {
            "backbone": backbone,
            "geometry": geometry,
            "alternate": backbone not in ("resnet18", "resnet34"),
        }

    @classmethod
    def steps(cls, backbone: str, images: int, epochs: int | None) -> int:
        if epochs is None and backbone in ("resnet18", "resnet34"):
            return LIGHT_STEPS
        return (epochs or PUBLISHED_EPOCHS) * math.ceil(images / BATCH)

    # ------------------------------------------------------------------ the literal pipeline

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(*self.trunk(self.trunk.normalise(image)))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        """Levels [N, C, h, w] to score [N] and map [N, H, W]: the negative density of each level's mean energy."""
        size, maps = (self.geometry.height, self.geometry.width), []
        for level, norm, flow in zip(levels, self.norms, self.flows, strict=True):
            z, _ = flow(norm(level))
            heat = -torch.exp(-0.5 * z.square().mean(1, keepdim=True))
            maps.append(F.interpolate(heat, size=size, mode="bilinear", align_corners=False)[:, 0])
        heat = torch.stack(maps).mean(0)
        return heat.amax((1, 2)), heat

    # ------------------------------------------------------------------ training

    def fit(
        self,
        images: Sequence[Image],
        budget: Budget,
        seed: int,
        progress: Progress,
        save: Save,
        resumed: dict[str, Any] | None,
    ) -> int:
        deadline = deadline_of(budget)
        trained = nn.ModuleList([self.norms, self.flows])
        device = next(trained.parameters()).device
        optimiser = torch.optim.Adam(
            [p for p in trained.parameters() if p.requires_grad], LEARNING_RATE, weight_decay=1e-5
        )
        start = 0
        if resumed is None:
            generator = torch.Generator().manual_seed(seed)
            for flow in self.flows:
                initialise(flow, generator)
        else:
            optimiser.load_state_dict(resumed["optimiser"])
            start = int(resumed["step"])
        lengths = [math.prod(shape) for shape in self.shapes]

        def features(image: Tensor) -> Tensor:
            return torch.cat(
                [level.flatten(1) for level in self.trunk(self.trunk.normalise(image))], 1
            )

        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            self.eval()
            found = collect(images, features, device, folder, progress)  # [n, all levels]

            def loss_of(step: int, chosen: Any) -> Tensor:
                levels = torch.split(torch.from_numpy(found[chosen]).to(device), lengths, 1)
                shaped = [
                    level.view(-1, *shape) for level, shape in zip(levels, self.shapes, strict=True)
                ]
                return self.loss(shaped)

            self.train()
            self.trunk.eval()
            step = run_steps(
                loss_of,
                [optimiser],
                batches(len(found), BATCH, seed, start),
                start,
                budget.steps,
                deadline,
                progress,
                lambda step: save({"step": step, "optimiser": optimiser.state_dict()}),
            )
        self.eval()
        return step

    def loss(self, levels: Sequence[Tensor]) -> Tensor:
        """Energy less log-determinant, summed over dimensions and levels, the mean over the images."""
        total = torch.zeros((), device=levels[0].device)
        for level, norm, flow in zip(levels, self.norms, self.flows, strict=True):
            z, log_det = latent(flow, norm(level), autocast=True)
            total = total + (0.5 * z.square().sum((1, 2, 3)) - log_det).mean()
        return total

    def fused(self, form: str | None = None) -> nn.Module:
        """`form` is one for all levels instead of each level's own."""
        return (
            _Fused(copy.deepcopy(self).double(), (form,) * 3 if form else FORMS)
            .to(next(self.norms.parameters()).dtype)
            .eval()
        )


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


class _Fused(nn.Module):
    """See `FusedFlow` for the couplings."""

    def __init__(self, net: FastFlow, forms: Sequence[str]) -> None:
        super().__init__()
        self.trunk = fuse.fold_batchnorm(net.trunk)
        self.input = fuse.FoldedInput(self.trunk.conv1, MEAN_RGB, STD_RGB)  # type: ignore[arg-type]
        self.norms = net.norms
        flows = [FusedFlow(flow, form) for flow, form in zip(net.flows, forms, strict=True)]
        self.flows = nn.ModuleList(flows)
        self.densities = nn.ModuleList(_Density(flow.scale, 1 / len(flows)) for flow in flows)
        size = (net.geometry.height, net.geometry.width)
        self.upsamples = nn.ModuleList(fuse.Upsample(shape[1:], size) for shape in net.shapes)
        self.sum = _Sum()
        self.largest = fuse.Largest()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(*self.trunk(self.input(image)))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        parts = zip(levels, self.norms, self.flows, self.densities, self.upsamples, strict=True)
        heat = self.sum(
            *(upsample(density(flow(norm(x)))) for x, norm, flow, density, upsample in parts)
        ).squeeze(1)
        return self.largest(heat), heat


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
