"""SimpleNet: frozen features, one linear adapter, Gaussian noise as negatives, a two-layer discriminator.

Liu, Zhou, Xu and Wang, "SimpleNet: a simple network for image anomaly detection and localization", CVPR 2023,
with the constants of the authors' code. `forward` is their pipeline, literally; `fused` is the same function with
everything between backbone and LeakyReLU as one affine map per level.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flawline.runtime.image import Image
from flawline.train.backbones.resnet import MEAN_RGB, STD_RGB, Trunk
from flawline.train.blocks import fused as fuse
from flawline.train.blocks.patches import aggregate, collect, smoothed_map
from flawline.train.loop import batches, deadline_of, half_precision, run_steps
from flawline.train.method import Budget, Method, Save
from flawline.train.progress import Progress

BATCH = 8  # images; 8 x 36 x 36 vectors a step in the published setting
PUBLISHED_EPOCHS = 160  # 40 rounds of 4 passes
LIGHT_STEPS = 900
# The published 0.015 is an eighth of the standard deviation of ImageNet's features; other weights have other scales. In
# the light setting a quarter does better (elpv_mono, seed 0: 0.949 against 0.942), and half too much (texture weights,
# the demo's weave and board: 0.902 and 0.866 against 0.915 and 0.890).
RELATIVE_NOISE = 0.25
# The test AUROC of single steps oscillates; the mean over the last tenth of the training does not.
AVERAGED_SHARE = 0.1
SIGMA = 4.0  # of the Gaussian over the anomaly map, in pixels of the input


class SimpleNet(Method):
    """`level_dim` and `target_dim` are D1 and D2. `noise` is the standard deviation of the negatives' noise on the
    adapted features; None takes `RELATIVE_NOISE` of the features' own. `margin` is the hinge's th+ = -th-. `vectors`
    is how many of a batch's patches a step trains on; None takes all, as published.
    """

    name: ClassVar[str] = "simplenet"
    # The sum over a thousand hidden units, and what is computed from it.
    fp32_islands: tuple[str, ...] = ("/tail", "/smooth")

    def __init__(
        self,
        backbone: str,
        geometry: dict[str, Any],
        level_dim: int,
        target_dim: int,
        hidden: int = 1024,
        noise: float | None = 0.015,
        margin: float = 0.5,
        vectors: int | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            geometry=geometry,
            level_dim=level_dim,
            target_dim=target_dim,
            hidden=hidden,
            noise=noise,
            margin=margin,
            vectors=vectors,
        )
        self.level_dim, self.target_dim = level_dim, target_dim
        self.noise, self.margin, self.vectors = noise, margin, vectors
        self.trunk = Trunk(backbone).requires_grad_(False)
        self.adapter = nn.Linear(target_dim, target_dim)
        self.discriminator = nn.Sequential(
            nn.Linear(target_dim, hidden),
            nn.BatchNorm1d(hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1, bias=False),
        )

    @classmethod
    def defaults(cls, backbone: str) -> dict[str, Any]:
        if backbone in ("resnet18", "resnet34"):
            # 384 is the sum of their channels: 1536 would repeat the same taps. Neighbouring patches of one image are
            # so alike that a quarter of them trains as well per step, and four times as fast on a CPU.
            geometry = {"kind": "stretch", "height": 256, "width": 256}
            dims = {"level_dim": 384, "target_dim": 384, "noise": None, "vectors": 2048}
            return {"backbone": backbone, "geometry": geometry, **dims}
        geometry = {"kind": "shorter-crop", "height": 288, "width": 288, "shorter": 329}
        return {"backbone": backbone, "geometry": geometry, "level_dim": 1536, "target_dim": 1536}

    @classmethod
    def steps(cls, backbone: str, images: int, epochs: int | None) -> int:
        if epochs is None and backbone in ("resnet18", "resnet34"):
            return LIGHT_STEPS
        return (epochs or PUBLISHED_EPOCHS) * math.ceil(images / BATCH)

    # ------------------------------------------------------------------ the literal pipeline

    def features(self, image: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] BGR to patch features [N, h, w, D2] on layer2's grid."""
        return self.embed(*self.trunk(self.trunk.normalise(image)))

    def embed(self, level2: Tensor, level3: Tensor) -> Tensor:
        """Patches of both levels, pooled to patch features [N, h, w, D2] (section 3.1 of the paper)."""
        return aggregate(level2, level3, self.level_dim, self.target_dim)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.judge(self.features(image))

    def judge(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Patch features [N, h, w, D2] to score [N] and map [N, H, W]."""
        n, h, w, d = features.shape
        patch_score = -self.discriminator(self.adapter(features.view(-1, d))).view(n, h, w)
        return patch_score.amax((1, 2)), smoothed_map(
            patch_score, (self.geometry.height, self.geometry.width), SIGMA
        )

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
        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            self.eval()
            device = self.adapter.weight.device
            features = collect(
                images, lambda image: self.features(image).flatten(1, 2), device, folder, progress
            )
            return self._train(features, budget.steps, deadline, seed, progress, save, resumed)

    def _train(
        self,
        features: Any,
        steps: int,
        deadline: float,
        seed: int,
        progress: Progress,
        save: Save,
        resumed: dict[str, Any] | None,
    ) -> int:
        device = self.adapter.weight.device
        sigma = _relative_noise(features) if self.noise is None else self.noise
        optimisers = (
            torch.optim.AdamW(self.adapter.parameters(), lr=1e-4),
            torch.optim.Adam(self.discriminator.parameters(), lr=2e-4, weight_decay=1e-5),
        )
        if resumed is None:
            self._initialise(seed)
        else:
            for optimiser, state in zip(optimisers, resumed["optimisers"], strict=True):
                optimiser.load_state_dict(state)
        start = 0 if resumed is None else int(resumed["step"])
        head = nn.ModuleList([self.adapter, self.discriminator])
        averaging = get_ema_multi_avg_fn(self._decay(steps))  # type: ignore[no-untyped-call]
        average = AveragedModel(head, multi_avg_fn=averaging, use_buffers=True)
        if resumed is not None:
            average.load_state_dict(resumed["average"])

        def snapshot(step: int) -> None:
            optimiser_states = [optimiser.state_dict() for optimiser in optimisers]
            save({"step": step, "optimisers": optimiser_states, "average": average.state_dict()})

        def loss_of(step: int, chosen: Any) -> Tensor:
            batch = torch.from_numpy(self._draw(features, chosen, (seed, step))).to(device)
            return self._loss(
                batch, sigma, torch.Generator(device).manual_seed((seed << 32) + step)
            )

        self.train()
        self.trunk.eval()
        chosen = batches(len(features), BATCH, seed, start)
        step = run_steps(
            loss_of,
            optimisers,
            chosen,
            start,
            steps,
            deadline,
            progress,
            snapshot,
            after=lambda _: average.update_parameters(head),
        )
        head.load_state_dict(average.module.state_dict())
        self.eval()
        return step

    def _decay(self, steps: int) -> float:
        """Of the exponential moving average of the weights; 0, so none, in the published setting."""
        return 0.0 if self.vectors is None else max(0.0, 1 - 1 / (AVERAGED_SHARE * steps))

    def _draw(self, features: Any, chosen: Any, seed: tuple[int, int]) -> Any:
        """The vectors [n, D2] of one step: all patches of the chosen images, or the same number of each."""
        if self.vectors is None:
            return features[chosen].reshape(-1, features.shape[2])
        count = max(1, self.vectors // len(chosen))
        positions = np.random.default_rng(seed).integers(
            features.shape[1], size=(len(chosen), count)
        )
        return features[chosen[:, None], positions].reshape(-1, features.shape[2])

    def _loss(self, features: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
        """Truncated L1 on clean and noisy vectors [n, D2]; BatchNorm sees both together, as in the authors' code."""
        with half_precision(features.device):
            clean = self.adapter(features)
            noise = torch.randn(
                clean.shape, generator=generator, device=clean.device, dtype=torch.float32
            )
            logits = self.discriminator(torch.cat([clean, clean + sigma * noise]))[:, 0].float()
        good, bad = logits.chunk(2)
        return F.relu(self.margin - good).mean() + F.relu(self.margin + bad).mean()

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        linears: list[Any] = [self.adapter, self.discriminator[0], self.discriminator[3]]
        for linear in linears:
            # Drawn where the generator is, whatever the device.
            drawn = torch.empty_like(linear.weight, device="cpu")
            linear.weight.data.copy_(nn.init.xavier_normal_(drawn, generator=generator))
            if linear.bias is not None:
                bound = 1 / math.sqrt(linear.in_features)
                drawn = torch.empty_like(linear.bias, device="cpu")
                linear.bias.data.copy_(nn.init.uniform_(drawn, -bound, bound, generator=generator))

    # ------------------------------------------------------------------ the exported form

    def fused(self) -> nn.Module:
        # Folded in float64 whatever the network's type, so that rounding happens once, at the end.
        return _Fused(copy.deepcopy(self).double()).to(self.adapter.weight.dtype).eval()


def _relative_noise(features: Any) -> float:
    """A quarter of the mean standard deviation per dimension, over at most 64 images [n, positions, D2]."""
    some = features[np.linspace(0, len(features) - 1, min(64, len(features))).astype(int)]
    return RELATIVE_NOISE * float(some.reshape(-1, some.shape[-1]).std(0).mean())


class _Fused(nn.Module):
    """h = |w| (Wh2 (T2 * L2) + Up(Wh3 (T3 * L3)) + b); patch score = -sign(w) . LeakyReLU(h).

    Unfold, both pools, resize, adapter, first discriminator layer and BatchNorm are linear; pooling acts on channels
    and taps, resizing on positions, so they commute and both products run on their own level's grid. LeakyReLU lets
    a positive factor through, so the last layer's weights move into the first and leave a signed sum, whose terms
    have one scale: what INT8 wants.
    """

    def __init__(self, net: SimpleNet) -> None:
        super().__init__()
        self.trunk = fuse.fold_batchnorm(net.trunk)
        self.input = fuse.FoldedInput(self.trunk.conv1, MEAN_RGB, STD_RGB)  # type: ignore[arg-type]
        weight, bias, sign = _head(net)
        kernels = fuse.patch_stencils(net.trunk.channels, net.level_dim, net.target_dim)
        self.stencils, self.heads = nn.ModuleList(), nn.ModuleList()
        for kernel, level_bias in zip(kernels, (bias, None), strict=True):
            used = kernel.flatten(1).abs().sum(1) > 0
            self.stencils.append(fuse.grouped_convolution(kernel[used]))
            self.heads.append(fuse.pointwise(weight[:, used], level_bias))
        size = (net.geometry.height, net.geometry.width)
        grid2, grid3 = (tuple(-(-side // stride) for side in size) for stride in (8, 16))
        self.upsample = fuse.Upsample(grid3, grid2)  # type: ignore[arg-type]
        self.tail = fuse.pointwise(-sign[None])
        self.smooth = fuse.SmoothUpsample(grid2, size, SIGMA)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(*self.trunk(self.input(image)))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        fine, coarse = (
            head(stencil(x))
            for head, stencil, x in zip(self.heads, self.stencils, levels, strict=True)
        )
        # In place: the hidden map is the largest tensor of the head, and is made once.
        patch_score = self.tail(F.leaky_relu_(fine.add_(self.upsample(coarse)), 0.2)).squeeze(1)
        return patch_score.amax((1, 2)), self.smooth(patch_score)


def _head(net: SimpleNet) -> tuple[Tensor, Tensor, Tensor]:
    """Adapter, discriminator and BatchNorm up to LeakyReLU as one matrix [hidden, D2] and bias, scaled by the last
    layer's absolute weights, and the signs [hidden] of those: hidden units in the order of their signs."""
    layers: Any = net.discriminator
    first, norm, last = layers[0], layers[1], layers[3].weight.data[0]
    scale = last.abs() * norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight = scale[:, None] * (first.weight @ net.adapter.weight)
    bias = (
        scale * (first.weight @ net.adapter.bias + first.bias - norm.running_mean)
        + last.abs() * norm.bias
    )
    order = last.sign().argsort(stable=True)
    return weight.detach()[order], bias.detach()[order], last.sign()[order]
