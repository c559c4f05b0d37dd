"""SSNF: a normalising flow with self-attention, trained on good images against blended ones.

Chiu and Lai, "Self-supervised normalizing flows for image anomaly detection and localization" (CVPR
workshops 2023; Chiu's thesis 2022), with the constants of the authors' code. The flow learns the
likelihood of the features of good images, and a contrast pushes the features of blended images away
from it. The score of an image is the energy or the density of its latent.

The authors' extractor, a CaiT, costs 279 GMAC. With lighter backbones, the features are those of a
CNN on its own grid, with a fixed standardisation, and synthetic anomalies decide between two
scores. The light setting has another limit of the blended images that count, since the published
one needs a long training, and scores windows of positions.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flawline.options import option
from flawline.runtime.image import Geometry, Image
from flawline.train import TrainError
from flawline.train.anomalies.blend import Blended
from flawline.train.anomalies.products import choose_product, product_settings
from flawline.train.backbones import backbone_facts, create_backbone
from flawline.train.blocks import flow_scores
from flawline.train.blocks.attention import AttentionSubnetwork, Dropout, hidden_channels
from flawline.train.blocks.averaged_levels import (
    FusedLevels,
    average_levels,
    channel_statistics,
    random_rotation,
)
from flawline.train.blocks.contrastive_loss import (
    EPOCHS,
    NEGATIVES,
    Contrast,
    draw_images,
    note_kept_share,
    train_flow,
)
from flawline.train.blocks.flow import build_flow, flow_forward, initialise_flow, latent_nll
from flawline.train.blocks.fused import FusedMethod, Upsample, build_fused, fp32
from flawline.train.blocks.fused_flow import FusedFlow
from flawline.train.blocks.patches import collect_features
from flawline.train.method import Fit, Method, MethodSettings, Phase

LIGHT_STEPS = 300


@dataclass(frozen=True)
class SSNFSettings(MethodSettings):
    """The settings of SSNF: its synthetic anomalies, its features, its flow and its training."""

    product: str | None = option(
        None,
        "product whose blend settings to use, for example bottle; default: from the data's name",
        flag=True,
        anomaly_flag=True,
    )
    shots: int | None = option(
        None,
        "use this many of the good images; from 20 on, a tenth of them only chooses the score",
        flag=True,
    )
    negatives: Literal["limited", "near", "none"] = option(
        "limited",
        "blended images to train against: limited (as published: once good images are likely), "
        "near (the likelier half, and all that are close to good ones) or none",
        flag=True,
    )
    warm_up: float = option(0.0, "share of the steps before the first blended image")
    stride: int = option(16, "input pixels per position: 8 (grid of layer2) or 16 (grid of layer3)")
    projected: int | None = option(None, "channels after a random rotation; None for no rotation")
    blocks: int = option(8, "couplings")
    hidden: int = option(128, "hidden channels of a sub-network, at most half of all channels")
    heads: int = option(4, "attention heads")
    dropout: float = option(0.2, "dropout of sub-networks")
    value_dropout: bool = option(False, "drop values of the attention, not single weights: faster")
    window: int = option(1, "positions per side of the window whose mean is the score; odd")
    batch: int = option(16, "good images of a step; there are as many blended ones")
    learning_rate: float = option(2e-4, "learning rate at the start")

    def __post_init__(self) -> None:
        if self.negatives not in NEGATIVES:
            known = ", ".join(NEGATIVES)
            raise TrainError(f"--negatives {self.negatives} is unknown; known: {known}")
        if self.window < 1 or self.window % 2 == 0:
            raise TrainError(f"window {self.window} is not odd; give 1, 3, 5 or 7")
        if self.shots is not None and self.shots < 1:
            raise TrainError(f"--shots {self.shots} is not above 0")


class SSNF(Method):
    """SSNF on layer2 and layer3 of a residual network, or on the paper's transformer."""

    name: ClassVar[str] = "ssnf"
    trains_against: ClassVar[tuple[str, ...]] = ("blend",)
    Settings = SSNFSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo", "elpv_mono")
    # Good scores differ by about 0.01 and defects in a map by about 0.3, and rounding errors grow
    # with the distance from good images.
    map_tolerance: ClassVar[float] = 20.0
    trains_on_pixels: ClassVar[bool] = True

    settings: SSNFSettings
    mean: Tensor  # [C], of the features of good images
    std: Tensor  # [C]
    rotation: Tensor  # [C, channels of the backbone], or empty without a rotation
    by_energy: Tensor  # bool: the score is the mean energy; otherwise the mean density

    def __init__(self, settings: SSNFSettings) -> None:
        super().__init__(settings)
        facts = backbone_facts(settings.backbone)
        # Both levels of a residual network, or the one level of a transformer.
        levels = tuple(sorted({2, 3} & set(facts.levels)))
        self.backbone = create_backbone(settings.backbone, levels)
        strides = self.backbone.strides
        if settings.stride not in strides:
            raise TrainError(f"stride {settings.stride} is unknown; known: {strides}")
        self.grid = self.backbone.grids(*settings.size)[strides.index(settings.stride)]
        # The stride of the average of the first level.
        self.stride = settings.stride // strides[0]
        raw = sum(self.backbone.channels)
        channels = settings.projected or raw
        rotation = torch.zeros(0)
        if settings.projected:
            rotation = torch.zeros(channels, raw)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("rotation", rotation)
        self.register_buffer("by_energy", torch.tensor(False))
        self.hidden = hidden_channels(settings.hidden, channels, settings.heads)
        self.flow = build_flow(channels, self.grid, settings.blocks, self._subnetwork)

    def _subnetwork(self, number: int, c_in: int, c_out: int) -> AttentionSubnetwork:
        settings = self.settings
        dropout = Dropout(settings.dropout, settings.value_dropout)
        return AttentionSubnetwork(c_in, c_out, self.hidden, settings.heads, dropout, self.grid)

    @classmethod
    def settings_for(cls, backbone: str) -> SSNFSettings:
        facts = backbone_facts(backbone)
        if facts.fixed_size is not None:  # the paper's transformer
            geometry = Geometry("stretch", facts.fixed_size, facts.fixed_size)
            return SSNFSettings(backbone, geometry, blocks=10)
        geometry = Geometry("stretch", 256, 256)
        if facts.light:
            # Chosen on the tuning set, for a training of some minutes.
            light = SSNFSettings(backbone, geometry, batch=8, learning_rate=1e-3)
            return replace(light, negatives="near", warm_up=0.5, value_dropout=True, window=5)
        return SSNFSettings(backbone, geometry, projected=512)

    @classmethod
    def complete_settings(cls, settings: SSNFSettings, data: Path) -> SSNFSettings:
        return replace(settings, product=choose_product(settings.product, data))

    @classmethod
    def steps(cls, settings: SSNFSettings, images: int, epochs: int | None) -> int:
        if epochs is None and backbone_facts(settings.backbone).light:
            return LIGHT_STEPS
        return math.ceil((epochs or EPOCHS) * images / settings.batch)

    @classmethod
    def images_used(cls, settings: SSNFSettings, available: int) -> int:
        return min(settings.shots or available, available)

    @classmethod
    def anomalies(cls, settings: SSNFSettings, images: Sequence[Image], seed: int) -> Blended:
        description = f"blend settings of {settings.product or 'textures'}"
        return Blended(images, product_settings(settings.product), seed, description)

    # ------------------------------------------------------------ the literal pipeline

    def features(self, image: Tensor) -> Tensor:
        """Compute features [N, C, h, w] of images, uint8 BGR [N, H, W, 3]; not yet standardised.

        Both levels are averaged over 3x3 and brought to one grid; the one level of a transformer
        stays as it is.
        """
        return average_levels(self.backbone.extract(image), self.stride, self.rotation)

    def standardised(self, features: Tensor) -> Tensor:
        """Standardise features [N, C, h, w] by the statistics of the good images."""
        return (features - self.mean[:, None, None]) / self.std[:, None, None]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        z, _ = self.flow(self.standardised(self.features(image)))
        return self.judge(z, bool(self.by_energy))

    def judge(self, z: Tensor, by_energy: bool) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] from a latent [N, C, h, w]."""
        per_position = flow_scores.literal_score(z, by_energy)
        return flow_scores.judge_positions(per_position, self.settings.size, self.settings.window)

    # ------------------------------------------------------------ training

    def fit(self, fit: Fit) -> int:
        # Two phases. The second one is short and starts again when it was interrupted.
        training, validation = draw_images(fit.images, self.settings.shots, fit.seed)
        done = self._train(training, fit)
        note_kept_share(fit)
        self._choose_score(validation, fit)
        return done

    def _train(self, images: Sequence[Image], fit: Fit) -> int:
        phase = fit.phase("training")
        if phase.done:
            return fit.steps
        self.eval()
        if phase.state is None:
            self._initialise(fit.seed)
        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            features = collect_features(images, self.features, self.device, folder, fit.progress)
            if phase.state is None and not backbone_facts(self.settings.backbone).normalised:
                mean, std = channel_statistics(features)
                self.mean.copy_(mean)
                self.std.copy_(std)
            done = self._train_flow(images, features, phase, fit)
        self.eval()
        if done == fit.steps:
            phase.finish()
        return done

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        if len(self.rotation):
            rows, columns = self.rotation.shape
            self.rotation.copy_(random_rotation(rows, columns, generator))
        initialise_flow(self.flow, generator)

    def _train_flow(
        self, images: Sequence[Image], features: npt.NDArray[np.float32], phase: Phase, fit: Fit
    ) -> int:
        settings = self.settings
        blended = self.anomalies(settings, images, fit.seed)
        contrast = Contrast(settings.negatives, self.flow.shapes[0], fit)
        warm_up = round(settings.warm_up * fit.steps)

        def loss_of(draws: range) -> Tensor:
            step = draws.start // settings.batch
            batch = torch.from_numpy(features[[blended.index(draw) for draw in draws]])
            batch = batch.to(self.device)
            if settings.negatives != "none" and step >= warm_up:
                batch = torch.cat([batch, self._bad_features(blended.anomalies(draws))])
            nll = self.nll(batch)
            return contrast.loss(step, nll[: len(draws)], nll[len(draws) :])

        rate = settings.learning_rate
        others = {"contrast": contrast}
        return train_flow(self.flow, loss_of, fit, phase, len(images), settings.batch, rate, others)

    @torch.no_grad()
    def _bad_features(self, images: list[Image]) -> Tensor:
        """Compute the features of blended images, of which there may be none."""
        if not images:
            return torch.zeros(0, *self.flow.shapes[0], device=self.device)
        return self.features(torch.from_numpy(np.stack(images)).to(self.device))

    def nll(self, features: Tensor) -> Tensor:
        """Compute the negative log-likelihood [N], in nats, of features [N, C, h, w]."""
        z, log_determinant = flow_forward(self.flow, self.standardised(features), autocast=True)
        return latent_nll(z, log_determinant)

    @torch.inference_mode()
    def _choose_score(self, images: Sequence[Image], fit: Fit) -> None:
        """Choose the score that separates good from blended images better; needs no defect."""
        blended = self.anomalies(self.settings, images, fit.seed + 1)
        by_energy = flow_scores.choose_score(self._both_scores, blended, 2 * len(images), fit)
        self.by_energy.fill_(by_energy)

    def _both_scores(self, image: Image) -> tuple[float, float]:
        batch = torch.from_numpy(image)[None].to(self.device)
        z, _ = flow_forward(self.flow, self.standardised(self.features(batch)))
        return float(self.judge(z, by_energy=True)[0]), float(self.judge(z, by_energy=False)[0])

    # ------------------------------------------------------------ the exported form

    def fused(self, form: str = "padded") -> nn.Module:
        """Return the exported module; `form` is that of `FusedFlow`."""
        return build_fused(self, lambda exact: FusedSSNF(exact, form))


class FusedSSNF(FusedMethod):
    """SSNF for export; see `FusedLevels` for the features and `FusedFlow` for the couplings."""

    def __init__(self, method: SSNF, form: str) -> None:
        super().__init__(method)
        self.levels: nn.Module = nn.Identity()
        if len(method.backbone.levels) == 2:
            # The density of good images spans a hundredth, and half of FP16's error is the rounding
            # of the image; the first convolution costs little in FP32.
            fp32(self.input)
            fp32(self.backbone.first_convolution)
            self.levels = FusedLevels(
                method.backbone.channels,
                method.backbone.grids(*method.settings.size),
                method.stride,
                method.mean,
                method.std,
                method.rotation,
            )
        self.flow = FusedFlow(method.flow, form)
        self.score = fp32(flow_scores.fused_score(self.flow.scale, bool(method.by_energy)))
        self.upsample = fp32(Upsample(method.grid, method.settings.size))
        self.largest = fp32(flow_scores.LargestWindow(method.settings.window))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.levels(*levels)
        per_position = self.score(self.flow(features))  # [N, 1, h, w]
        anomaly_map = self.upsample(per_position).squeeze(1)
        return self.largest(per_position, anomaly_map), anomaly_map
