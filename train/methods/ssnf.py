"""SSNF: a normalising flow of couplings of convolution and self-attention, trained against blended patches.

Chiu and Lai, "Self-supervised normalizing flows for image anomaly detection and localization" (CVPR workshops 2023;
Chiu's thesis 2022), with the constants of the authors' code. What is ours, since their extractor costs 279 GMAC: CNN
features with fixed standardisation, their grid, and the choice of the score on synthetic anomalies.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.runtime.image import Image
from flawline.train import TrainError
from flawline.train.anomalies import Blended, settings
from flawline.train.backbones.cait import CAITS, CaiT
from flawline.train.backbones.resnet import MEAN_RGB, STD_RGB, Trunk
from flawline.train.blocks import fused as fuse
from flawline.train.blocks.attention import SubNet
from flawline.train.blocks.flow import (
    Energy,
    FusedFlow,
    Likelihood,
    build_flow,
    initialise,
    islands,
    latent,
    negative_log_likelihood,
)
from flawline.train.blocks.patches import collect
from flawline.train.loop import deadline_of, run_steps
from flawline.train.method import Budget, Method, Save
from flawline.train.metrics import auroc
from flawline.train.progress import Progress

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


class SSNF(Method):
    """`stride` is the grid of the features: 8 is layer2's, 16 layer3's with a quarter of the positions and a sixth of
    the arithmetic. `projected` is to how many channels a fixed random rotation brings them, None to none. `product`
    names the settings of `train.augment`; None takes those of textures. `shots` is how many good images are used.
    `negatives`: blended images as published ("limited": while they are likelier than the worst good one and not yet
    far away), "all" of them always, or "none". `batch` is how many good images a step sees, and as many blended ones.
    """

    name: ClassVar[str] = "ssnf"
    # Scores of good images are a hundredth apart, defects in a map a third; what is far from good is stretched most.
    map_tolerance: ClassVar[float] = 20.0
    options: ClassVar[dict[str, tuple[Callable[[str], Any], str]]] = {
        "--product": (str, "whose blended anomalies to train against, such as bottle; default the data's name, or"
                      " a texture's"),
        "--shots": (int, "use so many of the good images; from 20 on, a tenth of them only chooses the score"),
        "--negatives": (str, f"blended anomalies to train against: {', '.join(NEGATIVES)} (all runs away)"),
    }  # fmt: skip
    mean: Tensor
    std: Tensor
    rotation: Tensor
    by_energy: Tensor

    def __init__(
        self,
        backbone: str,
        geometry: dict[str, Any],
        stride: int = 16,
        projected: int | None = None,
        blocks: int = 8,
        hidden: int = 128,
        heads: int = 4,
        dropout: float = 0.2,
        product: str | None = None,
        shots: int | None = None,
        negatives: str = "limited",
        batch: int = 16,
        learning_rate: float = 2e-4,
    ) -> None:
        super().__init__(
            backbone=backbone,
            geometry=geometry,
            stride=stride,
            projected=projected,
            blocks=blocks,
            hidden=hidden,
            heads=heads,
            dropout=dropout,
            product=product,
            shots=shots,
            negatives=negatives,
            batch=batch,
            learning_rate=learning_rate,
        )
        if negatives not in NEGATIVES:
            raise TrainError(f"--negatives {negatives} is unknown; known: {', '.join(NEGATIVES)}")
        if stride not in (8, 16):
            raise TrainError(f"stride {stride} is neither 8 (layer2's grid) nor 16 (layer3's)")
        if shots is not None and shots < 1:
            raise TrainError(f"--shots {shots} is not above 0")
        self.product, self.shots, self.negatives = product, shots, negatives
        self.batch, self.learning_rate = batch, learning_rate
        self.notes: list[str] = []
        trunk = CaiT(backbone) if backbone in CAITS else Trunk(backbone)
        self.trunk = trunk.requires_grad_(False)
        self.fp32_islands = (*islands("/flow", blocks, "padded"), "/score", "/upsample", "/largest")
        if isinstance(trunk, Trunk):
            # The density of good images spans a hundredth: the picture's own rounding is half of all that is seen of
            # FP16, and its first convolution is cheap.
            self.fp32_islands += ("/input", "/trunk/conv1")
        size = self.geometry.height, self.geometry.width
        if isinstance(trunk, CaiT) and set(size) != {trunk.size}:
            raise TrainError(
                f"{backbone} takes images of {trunk.size} x {trunk.size} alone; leave --size out"
            )
        self.stride, self.grid = stride, (-(-size[0] // stride), -(-size[1] // stride))
        raw = sum(self.trunk.channels)
        channels = projected or raw
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer(
            "rotation", torch.zeros(channels, raw) if projected else torch.zeros(0)
        )
        self.register_buffer("by_energy", torch.tensor(False))
        hidden = min(hidden, channels // 2)
        if hidden % (2 * heads):
            raise TrainError(
                f"{hidden} hidden channels are not a multiple of twice the {heads} heads"
            )
        self.flow = build_flow(
            channels,
            self.grid,
            blocks,
            lambda _, i, o: SubNet(i, o, hidden, heads, dropout, self.grid),
        )

    @classmethod
    def defaults(cls, backbone: str) -> dict[str, Any]:
        geometry = {"kind": "stretch", "height": 256, "width": 256}
        if backbone in CAITS:
            side = CAITS[backbone][0]
            return {
                "backbone": backbone,
                "geometry": {"kind": "stretch", "height": side, "width": side},
                "blocks": 10,
            }
        if backbone in ("resnet18", "resnet34"):
            # On the tuning set half the batch at five times the rate did better than the published, in half the time.
            return {"backbone": backbone, "geometry": geometry, "batch": 8, "learning_rate": 1e-3}
        return {"backbone": backbone, "geometry": geometry, "projected": 512}

    @classmethod
    def steps(cls, backbone: str, images: int, epochs: int | None) -> int:
        if epochs is None and backbone in ("resnet18", "resnet34"):
            return LIGHT_STEPS
        batch: int = cls.defaults(backbone).get("batch", 16)
        return math.ceil((epochs or EPOCHS) * images / batch)

    # ------------------------------------------------------------------ the literal pipeline

    def features(self, image: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] BGR to [N, C, h, w]: both levels averaged over 3x3, on one grid, not yet standardised; a
        transformer's one map as it is."""
        levels: tuple[Tensor, ...] = self.trunk(self.trunk.normalise(image))
        if len(levels) == 1:
            return levels[0]
        level2, level3 = levels
        fine = F.avg_pool2d(level2, 3, self.stride // 8, 1)
        coarse = F.avg_pool2d(level3, 3, 1, 1)
        if self.stride == 8:
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
        heat = (
            square.mean(1) / 2
            if by_energy
            else -(torch.exp(-square / 2) / math.sqrt(2 * math.pi)).mean(1)
        )
        size = (self.geometry.height, self.geometry.width)
        heat = F.interpolate(heat[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
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
        chosen = np.random.default_rng((seed, 2)).permutation(len(images))[: self.shots]
        spare = int(VALIDATION_SHARE * len(chosen))
        # One alone would be blended with itself.
        held = chosen[: min(VALIDATION, spare) if spare > 1 else 0]
        pictures = [np.asarray(images[int(i)]) for i in chosen]
        trained = pictures[len(held) :]
        device = self.mean.device
        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            self.eval()
            if resumed is None:
                self._initialise(seed)
            features = collect(trained, self.features, device, folder, progress)
            if resumed is None and not isinstance(
                self.trunk, CaiT
            ):  # which normalises its tokens itself
                self._standardise(features)
            step = self._train(
                trained, features, budget.steps, deadline, seed, progress, save, resumed
            )
        self.eval()
        # Few shots leave none to hold out; their own pictures then have to do.
        self._choose_score(pictures[: len(held)] or trained[:VALIDATION], seed, progress)
        return step

    def _train(
        self,
        pictures: list[Image],
        features: Any,
        steps: int,
        deadline: float,
        seed: int,
        progress: Progress,
        save: Save,
        resumed: dict[str, Any] | None,
    ) -> int:
        device = self.mean.device
        weights = [p for p in self.flow.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(weights, self.learning_rate, eps=1e-4, weight_decay=1e-5)
        start = 0
        if resumed is not None:
            optimiser.load_state_dict(resumed["optimiser"])
            start = int(resumed["step"])
        # Not sharpened: the good features are computed once, and only their partners would be, which tells them apart.
        blended = Blended(pictures, settings(self.product), seed, sharpening=False)
        # The last step is what is saved: an odd number of half-turns of the cosine ends at LAST_RATE.
        turns = steps * self.batch / (EPOCHS * len(pictures))
        period = max(steps, 1) / (2 * max(0, round((turns - 1) / 2)) + 1)

        def loss_of(step: int, draws: range) -> Tensor:
            optimiser.param_groups[0]["lr"] = _cosine(self.learning_rate, step / period)
            torch.manual_seed(
                (seed << 32) + step
            )  # of dropout, so that a resumed run goes on exactly
            good = torch.from_numpy(features[[blended.index(draw) for draw in draws]]).to(device)
            if self.negatives == "none":
                return self.nll(good).mean()
            samples = [blended.sample(draw) for draw in draws]
            # Where no place for a patch was found, the partner is the good picture itself.
            bad = [synthetic for _, synthetic, mask in samples if mask.any()]
            if not bad:
                return self.nll(good).mean()
            with torch.no_grad():
                unlikely = self.features(torch.from_numpy(np.stack(bad)).to(device))
            nll = self.nll(torch.cat([good, unlikely]))
            return contrast(
                nll[: len(good)], nll[len(good) :], self.flow.shapes[0], self.negatives == "limited"
            )

        self.flow.train()
        return run_steps(
            loss_of,
            [optimiser],
            (range(k * self.batch, (k + 1) * self.batch) for k in range(start, steps)),
            start,
            steps,
            deadline,
            progress,
            lambda step: save({"step": step, "optimiser": optimiser.state_dict()}),
        )

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
    def _choose_score(self, pictures: list[Image], seed: int, progress: Progress) -> None:
        """By which of the two scores good pictures differ more from blended ones; no defect is needed."""
        blended = Blended(pictures, settings(self.product), seed + 1, sharpening=False)
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
            progress("choosing the score", draw + 1, 2 * len(pictures))
        told = {
            key: auroc(np.repeat([False, True], len(good)), np.array(good + bad))
            for key, (good, bad) in scores.items()
        }
        self.by_energy.fill_(told[True] > told[False])
        self.notes = [
            f"score: mean {'energy' if self.by_energy else 'density'} (AUROC on blended images: energy "
            f"{told[True]:.3f}, density {told[False]:.3f})",
            f"blended as for {self.product or 'textures'}",
        ]
        if empty:
            self.notes.append(
                f"note: in {empty} of {2 * len(pictures)} pictures no patch found its place; is --product the right "
                f"one? Look at them with python -m train.augment"
            )

    # ------------------------------------------------------------------ the exported form

    def fused(self, form: str = "padded") -> nn.Module:
        return _Fused(copy.deepcopy(self).double(), form).to(self.mean.dtype).eval()


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


class _Fused(nn.Module):
    """Averages, rotation and standardisation are one convolution per level; see `FusedFlow` for the couplings."""

    def __init__(self, net: SSNF, form: str) -> None:
        super().__init__()
        self.trunk = fuse.fold_batchnorm(net.trunk)
        self.input = fuse.FoldedInput(self.trunk.entry, MEAN_RGB, STD_RGB)  # type: ignore[arg-type]
        size = (net.geometry.height, net.geometry.width)
        self.levels = nn.ModuleList()
        if len(net.trunk.channels) == 2:
            self._add_levels(net)
        self.flow = FusedFlow(net.flow, form)
        self.score = (Energy if net.by_energy else Likelihood)(self.flow.scale)
        self.upsample = fuse.Upsample(net.grid, size)
        self.largest = fuse.Largest()

    def _add_levels(self, net: SSNF) -> None:
        fine, coarse = net.trunk.channels
        rotation = net.rotation if len(net.rotation) else None
        self.summed = rotation is not None
        for channels, first, stride in ((fine, 0, net.stride // 8), (coarse, fine, 1)):
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
                    average, fuse.pointwise(rotation[:, part] / net.std[:, None], offset)
                )
            self.levels.append(level)
        grid3 = (-(-net.geometry.height // 16), -(-net.geometry.width // 16))
        self.match = fuse.Upsample(grid3, net.grid) if net.stride == 8 else nn.Identity()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(*self.trunk(self.input(image)))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        features = levels[0]
        if self.levels:
            fine, coarse = (
                prepare(level) for prepare, level in zip(self.levels, levels, strict=True)
            )
            coarse = self.match(coarse)
            features = fine + coarse if self.summed else torch.cat([fine, coarse], 1)
        heat = self.upsample(self.score(self.flow(features))).squeeze(1)
        return self.largest(heat), heat


def _average(mean: Tensor, std: Tensor, stride: int) -> nn.Conv2d:
    """A 3x3 average of each channel, zero-padded, then standardised."""
    conv = nn.Conv2d(len(mean), len(mean), 3, stride, 1, groups=len(mean), dtype=mean.dtype)
    conv.weight.data = (1 / (9 * std))[:, None, None, None].expand(-1, 1, 3, 3).contiguous()
    assert conv.bias is not None
    conv.bias.data = -mean / std
    return conv
