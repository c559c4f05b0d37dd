"""SuperSimpleNet: SimpleNet's head on a finer grid, trained against noise in irregular regions.

Rolih, Fučka and Skočaj, "SuperSimpleNet: unifying unsupervised and supervised learning for fast and
reliable surface defect detection", ICPR 2024, with the constants of the authors' code
(blaz-r/SuperSimpleNet) for training on good images. Only its segmentation path is here, trained
without the classification head: the authors report that without defective images, the largest value
of the map ranks images as well as that head (98.5 against 98.4 on MVTec AD). `fused` is the same
function as `forward` with both products on the levels' own grids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.options import option
from flawline.runtime.image import Geometry
from flawline.train.backbones import backbone_facts, create_backbone
from flawline.train.blocks.discriminator import (
    NEGATIVE_SLOPE,
    HeadTraining,
    build_discriminator,
    even_decay,
    fold_head,
    initialise_head,
)
from flawline.train.blocks.feature_vectors import mean_deviation, spread_indices
from flawline.train.blocks.fused import (
    FusedMethod,
    Largest,
    SmoothUpsample,
    build_fused,
    fp32,
    pointwise,
)
from flawline.train.blocks.mirrored_gaussian import mirrored_gaussian, mirrored_gaussian_matrix
from flawline.train.blocks.noisy_regions import draw_regions, segmentation_loss
from flawline.train.blocks.stored_levels import StoredLevels, stored_levels
from flawline.train.blocks.upscaled_levels import (
    FusedUpscaling,
    UpscaledPositions,
    upscale_levels,
    upscaled_grid,
)
from flawline.train.loop import choose_steps, half_precision
from flawline.train.method import Fit, Method, MethodSettings

Array = npt.NDArray[Any]

ADAPTER_RATE = 1e-4
DISCRIMINATOR_RATE = 2e-4
DISCRIMINATOR_DECAY = 1e-5
PUBLISHED_EPOCHS = 300
LIGHT_STEPS = 2000
# Noise relative to the standard deviation of the features. After 700 steps on elpv_mono, a tuning
# set, 0.25 has an image AUROC of 0.900, 0.4 of 0.926, 0.7 and 1.0 of 0.935.
RELATIVE_NOISE = 0.7
# The published rates fall to 0.4 of their value at these shares of the training.
PUBLISHED_DROPS = (0.8, 0.9)
PUBLISHED_DROP = 0.4
SIGMA = 4.0  # of the Gaussian over the anomaly map, in pixels of the input
# Positions of an image on which the deviation of the features is measured.
MEASURED_POSITIONS = 256
# The products are limited to this, because FP16 ends at 65504 and the average adds two of them.
# Those of good images stay below a thousandth of it.
FP16_LIMIT = 3e4


@dataclass(frozen=True)
class SuperSimpleNetSettings(MethodSettings):
    """The settings of SuperSimpleNet; none is a flag. The defaults are the published values."""

    hidden: int = option(1024, "hidden units of the discriminator")
    align_corners: bool = option(
        True, "the resize of the levels lays corner values on each other, not the corners of grids"
    )
    noise: float | None = option(
        0.015, "standard deviation of the noise; None to take `relative_noise`"
    )
    relative_noise: float = option(
        RELATIVE_NOISE, "the same as a multiple of the features' standard deviation"
    )
    threshold: float = option(0.2, "noise is added where Perlin noise is above it")
    batch: int = option(32, "images of a step")
    positions: int | None = option(
        None, "positions of an image that a step trains on; None for all"
    )
    first_rate: float = option(
        1.0, "learning rates of the first step, as a multiple of the paper's"
    )
    last_rate: float | None = option(
        None, "the same of the last step, towards which they decay evenly; None for the paper's"
    )
    averaged_share: float = option(0.0, "share of the training over which weights are averaged")


class SuperSimpleNet(Method):
    """The segmentation path of SuperSimpleNet, as published or in a light setting."""

    name: ClassVar[str] = "supersimplenet"
    Settings = SuperSimpleNetSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo", "elpv_mono")
    settings: SuperSimpleNetSettings

    def __init__(self, settings: SuperSimpleNetSettings) -> None:
        super().__init__(settings)
        self.backbone = create_backbone(settings.backbone, (2, 3))
        self.grids = self.backbone.grids(*settings.size)
        dim = sum(self.backbone.channels)
        self.adapter = nn.Linear(dim, dim)
        self.discriminator = build_discriminator(dim, settings.hidden)

    @classmethod
    def settings_for(cls, backbone: str) -> SuperSimpleNetSettings:
        geometry = Geometry("stretch", 256, 256)
        if not backbone_facts(backbone).light:
            return SuperSimpleNetSettings(backbone, geometry)
        return SuperSimpleNetSettings(
            backbone,
            geometry,
            hidden=256,
            align_corners=False,
            noise=None,
            batch=8,
            positions=128,
            first_rate=10.0,
            last_rate=0.1,
            averaged_share=0.25,
        )

    @classmethod
    def steps(cls, settings: SuperSimpleNetSettings, images: int, epochs: int | None) -> int:
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
        return self.judge(self.embed(self.backbone.extract(image)))

    def embed(self, levels: Sequence[Tensor]) -> Tensor:
        """Return features [N, D, h, w] on twice the grid of the first level, D = all channels."""
        return upscale_levels(levels, self.settings.align_corners)

    def judge(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] from features [N, D, h, w].

        The score is the largest value of the smoothed map.
        """
        n, d, h, w = features.shape
        logits = self.discriminator(self.adapter(features.permute(0, 2, 3, 1).reshape(-1, d)))
        return self.smooth(logits.view(n, 1, h, w))

    def smooth(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] from logits [N, 1, h, w]."""
        planes = F.interpolate(logits, self.settings.size, mode="bilinear", align_corners=False)
        anomaly_map = mirrored_gaussian(planes, SIGMA)[:, 0]
        return anomaly_map.amax((1, 2)), anomaly_map

    # ------------------------------------------------------------ training

    def fit(self, fit: Fit) -> int:
        self.eval()
        with stored_levels(self.backbone, fit, self.device) as levels:
            return self.train_on(levels, fit)

    def train_on(self, levels: StoredLevels, fit: Fit) -> int:
        """Train adapter and discriminator on the levels of the images; return the steps done."""
        phase = fit.phase("training")
        if phase.state is None:
            initialise_head(self.adapter, self.discriminator, fit.seed)
        settings = self.settings
        groups = [
            {"params": self.adapter.parameters(), "lr": ADAPTER_RATE},
            {
                "params": self.discriminator.parameters(),
                "lr": DISCRIMINATOR_RATE,
                "weight_decay": DISCRIMINATOR_DECAY,
            },
        ]
        training = HeadTraining(
            optimisers=(torch.optim.AdamW(groups),),
            factor_at=self._rate_factor(),
            averaged_share=settings.averaged_share,
            images=len(levels),
            batch=settings.batch,
        )
        head = nn.Sequential(self.adapter, self.discriminator)
        self.train()
        done = training.run(head, fit, phase, self._loss_function(levels, fit.seed))
        self.eval()
        return done

    def _rate_factor(self) -> Callable[[float], float]:
        if self.settings.last_rate is None:
            return published_factor
        return even_decay(self.settings.first_rate, self.settings.last_rate)

    def _loss_function(self, levels: StoredLevels, seed: int) -> Any:
        """Return the loss of a step as a function of the step and the indices of its images."""
        at_positions = UpscaledPositions(self.grids, self.settings.align_corners).to(self.device)
        sigma = self.settings.noise
        if sigma is None:
            sigma = self.settings.relative_noise * self._deviation(levels, at_positions)

        def loss_of(step: int, chosen: Array) -> Tensor:
            rng = np.random.default_rng((seed, step))
            places = self._draw_places(len(chosen), rng)
            if places is None:
                vectors = self.embed(levels.of(chosen)).flatten(2).transpose(1, 2)
            else:
                vectors = at_positions(levels.of(chosen), places)
            anomalous = self._draw_regions(places, len(chosen), rng)
            generator = torch.Generator(self.device).manual_seed((seed << 32) + step)
            return self.loss(vectors.flatten(0, 1), anomalous, sigma, generator)

        return loss_of

    def _deviation(self, levels: StoredLevels, at_positions: UpscaledPositions) -> float:
        """Return the standard deviation of the features, the mean over the channels."""
        rng = np.random.default_rng(0)
        positions = int(np.prod(at_positions.size))
        vectors = []
        for index in spread_indices(len(levels)):
            places = torch.from_numpy(rng.integers(positions, size=(1, MEASURED_POSITIONS)))
            drawn = at_positions(levels.of(np.array([index])), places.to(self.device))
            vectors.append(drawn[0].cpu().numpy())
        return mean_deviation(np.stack(vectors))

    def _draw_places(self, images: int, rng: np.random.Generator) -> Tensor | None:
        """Draw positions [images, V] of a step, row by row; None where it takes all."""
        if self.settings.positions is None:
            return None
        positions = int(np.prod(upscaled_grid(self.grids[0])))
        places = rng.integers(positions, size=(images, self.settings.positions))
        return torch.from_numpy(places).to(self.device)

    def _draw_regions(self, places: Tensor | None, images: int, rng: np.random.Generator) -> Tensor:
        """Draw where the two copies of each image get noise, bool [2 * images * V].

        The order is that of the vectors, for the first copies and then for the second ones.
        """
        shape = upscaled_grid(self.grids[0])
        masks = draw_regions(2 * images, shape, self.settings.threshold, rng)
        regions = torch.from_numpy(masks).to(self.device).flatten(1)
        if places is not None:
            regions = regions.gather(1, places.repeat(2, 1))
        return regions.flatten()

    def loss(
        self, features: Tensor, anomalous: Tensor, sigma: float, generator: torch.Generator
    ) -> Tensor:
        """Compute the loss of two copies of vectors [n, D], of which some get noise.

        anomalous: which ones, bool [2n]. BatchNorm sees all of them together.
        """
        with half_precision(features.device):
            adapted = self.adapter(features).repeat(2, 1)
            noise = torch.randn(
                adapted.shape, generator=generator, device=adapted.device, dtype=torch.float32
            )
            logits = self.discriminator(adapted + sigma * noise * anomalous[:, None])
        return segmentation_loss(logits[:, 0].float(), anomalous)

    # ------------------------------------------------------------ the exported form

    def fused(self) -> nn.Module:
        return build_fused(self, FusedSuperSimpleNet)


def published_factor(share: float) -> float:
    """Return what the published learning rates are multiplied by after a share of the training."""
    drops = 0
    for start in PUBLISHED_DROPS:
        drops += share >= start
    return PUBLISHED_DROP**drops


class FusedSuperSimpleNet(FusedMethod):
    """h = Average(Up(Wh2 L2) + Up(Wh3 L3)) + b; map = sign(w) . LeakyReLU(h), smoothed.

    Adapter, first layer and BatchNorm are one affine map of a vector, which commutes with resize
    and average, so that the products run on the levels' own grids.
    """

    def __init__(self, method: SuperSimpleNet) -> None:
        super().__init__(method)
        settings = method.settings
        weight, bias, sign = fold_head(method.adapter, method.discriminator)
        self.heads = nn.ModuleList()
        for part in weight.tensor_split([method.backbone.channels[0]], 1):
            self.heads.append(pointwise(part.contiguous()))
        self.limit = nn.Hardtanh(-FP16_LIMIT, FP16_LIMIT)
        self.upscale = FusedUpscaling(method.grids, settings.align_corners, bias)
        # The sum over the hidden units, and what is computed from it, need FP32.
        self.tail = fp32(pointwise(sign[None]))
        grid = upscaled_grid(method.grids[0])
        self.smooth = fp32(SmoothUpsample(grid, settings.size, SIGMA, mirrored_gaussian_matrix))
        self.largest = fp32(Largest())

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        products = []
        for product, level in zip(self.heads, levels, strict=True):
            products.append(self.limit(product(level)))
        hidden = F.leaky_relu_(self.upscale(*products), NEGATIVE_SLOPE)
        anomaly_map = self.smooth(self.tail(hidden).squeeze(1))
        return self.largest(anomaly_map), anomaly_map
