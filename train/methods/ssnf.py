"""SSNF: a normalising flow of couplings of convolution and self-attention, trained against blended patches.

Chiu and Lai, "Self-supervised normalizing flows for image anomaly detection and localization" (CVPR workshops 2023;
Chiu's thesis 2022), with the constants of the authors' code. What is ours, since their extractor costs 279 GMAC: CNN
features with fixed standardisation, their grid, and the choice of the score on synthetic anomalies.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.options import option
from flawline.runtime.image import Geometry, Image
from flawline.train import TrainError
from flawline.train.anomalies import Blended, choose_product
from flawline.train.anomalies import settings as blend_settings
from flawline.train.backbones import backbone_facts, create_backbone
from flawline.train.backbones.facts import BackboneFacts
from flawline.train.blocks import fused as rewrites
from flawline.train.blocks.attention import SubNet
from flawline.train.blocks.flow import (
    Energy,
    FusedFlow,
    Likelihood,
    build_flow,
    initialise,
    latent,
    negative_log_likelihood,
)
from flawline.train.blocks.fused import FusedMethod, build_fused, fp32
from flawline.train.blocks.patches import collect_features
from flawline.train.loop import Steps
from flawline.train.method import Fit, Method, MethodSettings, Phase
from flawline.train.metrics import auroc

EPOCHS = 100  # of one cosine, from the learning rate to LAST_RATE
LAST_RATE = 1e-6
LIGHT_STEPS = 300
# What the authors' cap of 1e5 nats is per dimension of their features: blended images that far away are left alone.
CAP = 0.166
NEGATIVES = ("limited", "all", "none")
VALIDATION_SHARE, VALIDATION = (
    0.1,
    32,
)  # of the good images, and at most so many, to choose the score on


@dataclass(frozen=True)
class SSNFSettings(MethodSettings):
    stride: int = option(16, "pixels between positions: 8 is layer2's grid, 16 layer3's")
    projected: int | None = option(
        None, "channels to which a fixed random rotation brings the features; None for no rotation"
    )
    blocks: int = option(8, "couplings of the flow")
    hidden: int = option(128, "hidden channels of a coupling's sub-network")
    heads: int = option(4, "attention heads of a coupling's sub-network")
    dropout: float = option(0.2, "dropout in a coupling's sub-network")
    product: str | None = option(
        None,
        "product whose blended anomalies to train against, such as bottle; default is the name of "
        "the data, or a texture",
        flag=True,
    )
    shots: int | None = option(
        None,
        "how many of the good images to use; from 20 on, a tenth of them only chooses the score",
        flag=True,
    )
    negatives: str = option(
        "limited",
        f"blended anomalies to train against: {', '.join(NEGATIVES)} (all runs away)",
        flag=True,
    )
    batch: int = option(16, "good images per step, with as many blended ones")
    learning_rate: float = option(2e-4, "learning rate at the start of a period of the cosine")

    def __post_init__(self) -> None:
        if self.negatives not in NEGATIVES:
            raise TrainError(
                f"--negatives {self.negatives} is unknown; known: {', '.join(NEGATIVES)}"
            )
        if self.stride not in (8, 16):
            raise TrainError(f"stride {self.stride} is neither 8 (layer2's grid) nor 16 (layer3's)")
        if self.shots is not None and self.shots < 1:
            raise TrainError(f"--shots {self.shots} is not above 0")


class SSNF(Method):
    """A flow of attention couplings on the features of two levels, or of a transformer's one."""

    name: ClassVar[str] = "ssnf"
    # Good scores differ by about 0.01, defects in a map by about 0.3, and rounding errors grow with the
    # anomaly, so maps get 20 times the score's tolerance.
    map_tolerance: ClassVar[float] = 20.0
    Settings = SSNFSettings

    settings: SSNFSettings
    mean: Tensor
    std: Tensor
    rotation: Tensor
    by_energy: Tensor

    def __init__(self, settings: SSNFSettings) -> None:
        super().__init__(settings)
        facts = backbone_facts(settings.backbone)
        self.backbone = create_backbone(settings.backbone, _levels(facts)).requires_grad_(False)
        self.normalised = facts.normalised
        height, width = settings.size
        self.grid = (-(-height // settings.stride), -(-width // settings.stride))
        raw = sum(self.backbone.channels)
        channels = settings.projected or raw
        rotation = torch.zeros(channels, raw) if settings.projected else torch.zeros(0)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("rotation", rotation)
        self.register_buffer("by_energy", torch.tensor(False))
        self.hidden = min(settings.hidden, channels // 2)
        if self.hidden % (2 * settings.heads):
            raise TrainError(
                f"{self.hidden} hidden channels are not a multiple of twice the "
                f"{settings.heads} heads"
            )
        self.flow = build_flow(channels, self.grid, settings.blocks, self._subnet)

    def _subnet(self, number: int, c_in: int, c_out: int) -> SubNet:
        settings = self.settings
        return SubNet(c_in, c_out, self.hidden, settings.heads, settings.dropout, self.grid)

    @classmethod
    def settings_for(cls, backbone: str) -> SSNFSettings:
        facts = backbone_facts(backbone)
        if facts.fixed_size is not None:
            geometry = Geometry("stretch", facts.fixed_size, facts.fixed_size)
            return SSNFSettings(backbone, geometry, blocks=10)
        geometry = Geometry("stretch", 256, 256)
        if facts.light:
            # On the tuning set half the batch at five times the rate did better than the published
            # values, in half the time.
            return SSNFSettings(backbone, geometry, batch=8, learning_rate=1e-3)
        return SSNFSettings(backbone, geometry, projected=512)

    @classmethod
    def complete_settings(cls, settings: SSNFSettings, data: Path) -> SSNFSettings:
        return dataclasses.replace(settings, product=choose_product(settings.product, data))

    @classmethod
    def steps(cls, settings: SSNFSettings, images: int, epochs: int | None) -> int:
        if epochs is None and backbone_facts(settings.backbone).light:
            return LIGHT_STEPS
        return math.ceil((epochs or EPOCHS) * images / settings.batch)

    @classmethod
    def images_used(cls, settings: SSNFSettings, available: int) -> int:
        return min(settings.shots or available, available)

    # ------------------------------------------------------------------ the literal pipeline

    def features(self, image: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] BGR to [N, C, h, w]: both levels averaged over 3x3, on one grid, not yet standardised; a
        transformer's one map as it is."""
        levels = self.backbone.extract(image)
        if len(levels) == 1:
            return levels[0]
        level2, level3 = levels
        fine = F.avg_pool2d(level2, 3, self.settings.stride // 8, 1)
        coarse = F.avg_pool2d(level3, 3, 1, 1)
        if self.settings.stride == 8:
            coarse = F.interpolate(
                coarse, size=fine.shape[2:], mode="bilinear", align_corners=False
            )
        both = torch.cat([fine, coarse], 1)
        return F.conv2d(both, self.rotation[..., None, None]) if len(self.rotation) else both

    def standardised(self, features: Tensor) -> Tensor:
        return (features - self.mean[:, None, None]) / self.std[:, None, None]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        z, _ = self.flow(self.standardised(self.features(image)))
        return self.judge(z, bool(self.by_energy))

    def judge(self, z: Tensor, by_energy: bool) -> tuple[Tensor, Tensor]:
        """Score [N] and map [N, H, W] of a latent [N, C, h, w]: the mean energy, or the mean density of the elements,
        which saturates; the score is the largest value of the upsampled map."""
        square = z.square()
        anomaly_map = (
            square.mean(1) / 2
            if by_energy
            else -(torch.exp(-square / 2) / math.sqrt(2 * math.pi)).mean(1)
        )
        size = self.settings.size
        anomaly_map = F.interpolate(
            anomaly_map[:, None], size=size, mode="bilinear", align_corners=False
        )[:, 0]
        return anomaly_map.amax((1, 2)), anomaly_map

    # ------------------------------------------------------------------ training

    def fit(self, fit: Fit) -> int:
        chosen = np.random.default_rng((fit.seed, 2)).permutation(len(fit.images))
        chosen = chosen[: self.settings.shots]
        spare = int(VALIDATION_SHARE * len(chosen))
        # One alone would be blended with itself.
        held_out = min(VALIDATION, spare) if spare > 1 else 0
        images = [np.asarray(fit.images[int(i)]) for i in chosen]
        trained = images[held_out:]
        phase = fit.phase("training")
        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            self.eval()
            if phase.state is None:
                self._initialise(fit.seed)
            features = collect_features(
                trained, self.features, self.mean.device, folder, fit.progress
            )
            if phase.state is None and not self.normalised:
                self._standardise(features)
            done = self._train(trained, features, fit, phase)
        self.eval()
        # Few shots leave none to hold out; their own images are used then.
        validation = images[:held_out] or trained[:VALIDATION]
        self._choose_score(validation, fit)
        return done

    def _train(self, images: list[Image], features: Any, fit: Fit, phase: Phase) -> int:
        device = self.mean.device
        settings = self.settings
        weights = [p for p in self.flow.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(weights, settings.learning_rate, eps=1e-4, weight_decay=1e-5)
        # Not sharpened: the good features are computed once, and only their partners would be, which
        # would tell them apart.
        blended = Blended(images, blend_settings(settings.product), fit.seed, sharpening=False)
        # The last step is what is saved: an odd number of half-turns of the cosine ends at LAST_RATE.
        turns = fit.steps * settings.batch / (EPOCHS * len(images))
        period = max(fit.steps, 1) / (2 * max(0, round((turns - 1) / 2)) + 1)

        def loss_of(step: int, draws: range) -> Tensor:
            optimiser.param_groups[0]["lr"] = _cosine(settings.learning_rate, step / period)
            # Seeds dropout, so that a resumed run continues exactly.
            torch.manual_seed((fit.seed << 32) + step)
            good = torch.from_numpy(features[[blended.index(draw) for draw in draws]]).to(device)
            if settings.negatives == "none":
                return self.nll(good).mean()
            samples = [blended.sample(draw) for draw in draws]
            # Where no place for a patch was found, the partner is the good image itself.
            bad = [synthetic for _, synthetic, mask in samples if mask.any()]
            if not bad:
                return self.nll(good).mean()
            with torch.no_grad():
                unlikely = self.features(torch.from_numpy(np.stack(bad)).to(device))
            nll = self.nll(torch.cat([good, unlikely]))
            shape = self.flow.shapes[0]
            limited = settings.negatives == "limited"
            return contrast(nll[: len(good)], nll[len(good) :], shape, limited)

        self.flow.train()
        steps = Steps(fit, phase, [optimiser], fit.steps)
        batch = settings.batch
        batches = (range(k * batch, (k + 1) * batch) for k in range(steps.start, fit.steps))
        return steps.run(batches, loss_of)

    def nll(self, features: Tensor) -> Tensor:
        """Negative log-likelihood [N], in nats, of features [N, C, h, w]."""
        return negative_log_likelihood(
            *latent(self.flow, self.standardised(features), autocast=True)
        )

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        if len(self.rotation):
            rows, raw = self.rotation.shape
            self.rotation.copy_(torch.linalg.qr(torch.randn(raw, rows, generator=generator))[0].T)
        initialise(self.flow, generator)

    def _standardise(self, features: Any) -> None:
        """Mean and standard deviation of each channel [C] over all positions of the good images [n, C, h, w]."""
        mean = features.mean((0, 2, 3), dtype=np.float64)
        square = np.mean([np.square(x, dtype=np.float64).mean((1, 2)) for x in features], 0)
        self.mean.copy_(torch.from_numpy(mean))
        # A channel that is silent on good images would otherwise shout at the first whisper.
        std = np.sqrt(np.maximum(square - mean**2, 0))
        self.std.copy_(torch.from_numpy(np.maximum(std, 0.05 * std.mean() + 1e-6)))

    @torch.inference_mode()
    def _choose_score(self, pictures: list[Image], fit: Fit) -> None:
        """By which of the two scores good pictures differ more from blended ones; no defect is needed."""
        product = self.settings.product
        blended = Blended(pictures, blend_settings(product), fit.seed + 1, sharpening=False)
        scores: dict[bool, list[list[float]]] = {True: [[], []], False: [[], []]}
        empty = 0
        for draw in range(2 * len(pictures)):
            *pair, mask = blended.sample(draw)
            empty += not mask.any()
            for bad, picture in enumerate(pair):
                image = torch.from_numpy(np.asarray(picture))[None].to(self.mean.device)
                z, _ = latent(self.flow, self.standardised(self.features(image)))
                for by_energy, found in scores.items():
                    found[bad].append(float(self.judge(z, by_energy)[0]))
            fit.progress("choosing the score", draw + 1, 2 * len(pictures))
        told = {
            key: auroc(np.repeat([False, True], len(good)), np.array(good + bad))
            for key, (good, bad) in scores.items()
        }
        self.by_energy.fill_(told[True] > told[False])
        fit.notes += [
            f"score: mean {'energy' if self.by_energy else 'density'} (AUROC on blended images: energy "
            f"{told[True]:.3f}, density {told[False]:.3f})",
            f"blended as for {product or 'textures'}",
        ]
        if empty:
            fit.notes.append(
                f"note: in {empty} of {2 * len(pictures)} pictures no patch found its place; is --product the right "
                f"one? Look at them with python -m train.anomalies"
            )

    # ------------------------------------------------------------------ the exported form

    def fused(self, form: str = "padded") -> nn.Module:
        return build_fused(self, lambda method: FusedSSNF(method, form))


def _levels(facts: BackboneFacts) -> tuple[int, ...]:
    """Layer2 and layer3 of a CNN, or the one level of a transformer."""
    return (2, 3) if 2 in facts.levels else (3,)


def contrast(likely: Tensor, unlikely: Tensor, shape: Sequence[int], limited: bool) -> Tensor:
    """The loss of a batch from the negative log-likelihoods of good [B] and blended [B] features of a shape.

    `limited` keeps the blended ones that are likelier than the worst good one and not CAP nats per dimension away.
    """
    kept = unlikely
    if limited:
        worst, cap = likely.detach().max(), CAP * math.prod(shape)
        kept = unlikely[(unlikely.detach() < worst) & (unlikely.detach() < cap)]
    if not len(kept):
        return likely.mean()
    return 0.5 * likely.mean() - 0.5 * kept.mean()


def _cosine(rate: float, turn: float) -> float:
    """The learning rate after so many periods: down, up again in the next."""
    return LAST_RATE + (rate - LAST_RATE) * (1 + math.cos(math.pi * turn)) / 2


class FusedSSNF(FusedMethod):
    """Averages, rotation and standardisation are one convolution per level; see `FusedFlow` for the couplings."""

    def __init__(self, method: SSNF, form: str) -> None:
        super().__init__(method)
        if not method.normalised:
            # The density of good images spans a hundredth: the image's own rounding is half of all that
            # is seen of FP16, and its first convolution is cheap.
            fp32(self.input)
            fp32(self.backbone.first_convolution)
        size = method.settings.size
        self.levels = nn.ModuleList()
        if len(method.backbone.channels) == 2:
            self._add_levels(method)
        self.flow = FusedFlow(method.flow, form)
        score = Energy if method.by_energy else Likelihood
        self.score = fp32(score(self.flow.scale))
        self.upsample = fp32(rewrites.Upsample(method.grid, size))
        self.largest = fp32(rewrites.Largest())

    def _add_levels(self, net: SSNF) -> None:
        fine, coarse = net.backbone.channels
        rotation = net.rotation if len(net.rotation) else None
        self.summed = rotation is not None
        for channels, first, stride in ((fine, 0, net.settings.stride // 8), (coarse, fine, 1)):
            part = slice(first, first + channels)
            if rotation is None:
                level: nn.Module = _average(net.mean[part], net.std[part], stride)
            else:
                # The mean is taken off once, with the first level.
                offset = -net.mean / net.std if first == 0 else None
                average = _average(
                    net.mean.new_zeros(channels), net.mean.new_ones(channels), stride
                )
                level = nn.Sequential(
                    average, rewrites.pointwise(rotation[:, part] / net.std[:, None], offset)
                )
            self.levels.append(level)
        grid3 = (-(-net.geometry.height // 16), -(-net.geometry.width // 16))
        self.match = (
            rewrites.Upsample(grid3, net.grid) if net.settings.stride == 8 else nn.Identity()
        )

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        features = levels[0]
        if self.levels:
            fine, coarse = (
                prepare(level) for prepare, level in zip(self.levels, levels, strict=True)
            )
            coarse = self.match(coarse)
            features = fine + coarse if self.summed else torch.cat([fine, coarse], 1)
        anomaly_map = self.upsample(self.score(self.flow(features))).squeeze(1)
        return self.largest(anomaly_map), anomaly_map


def _average(mean: Tensor, std: Tensor, stride: int) -> nn.Conv2d:
    """A 3x3 average of each channel, zero-padded, then standardised."""
    conv = nn.Conv2d(len(mean), len(mean), 3, stride, 1, groups=len(mean), dtype=mean.dtype)
    conv.weight.data = (1 / (9 * std))[:, None, None, None].expand(-1, 1, 3, 3).contiguous()
    assert conv.bias is not None
    conv.bias.data = -mean / std
    return conv
