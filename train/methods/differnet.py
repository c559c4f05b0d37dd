"""DifferNet: a normalising flow on the mean features of an image at three scales and many angles.

Rudolph et al., "Same same but DifferNet: semi-supervised defect detection with normalizing flows"
(WACV 2021), with the constants of the authors' code (marco-rudolph/differnet). It scores images as
a whole and has no anomaly map.

The light setting is a ResNet on images of 256, 128 and 64 pixels, which are rotated by right angles
alone, in training as in the test. It has half as many blocks, with networks an eighth as wide,
whose features are standardised first and get noise in training. Its learning rate is five times as
high.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flawline.options import option
from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.backbones import backbone_facts
from flawline.train.backbones.rotated import (
    RIGHT_ANGLES,
    FusedRotatedPyramid,
    RotatedPyramid,
    rotate_images,
)
from flawline.train.blocks.averaged_levels import channel_statistics
from flawline.train.blocks.flow_scores import log_energy
from flawline.train.blocks.fused import build_fused, fold_backbone, fp32
from flawline.train.blocks.patches import collect_features
from flawline.train.blocks.vector_flow import FusedVectorFlow, VectorFlow
from flawline.train.judging import no_map
from flawline.train.loop import Indices, Steps, batch_indices, choose_steps
from flawline.train.method import Fit, Method, MethodSettings

LEVEL = 3
SCALES = 3
# Images per step, and rotations of each of them.
BATCH = 24
ROTATIONS = 4
PUBLISHED_EPOCHS = 24 * 8
LIGHT_STEPS = 200
BETAS = (0.8, 0.8)
EPSILON = 1e-4
WEIGHT_DECAY = 1e-5

Array = npt.NDArray[np.float32]
# Draws the vectors [N, D] of a step from its generator and the indices of its images.
Draw = Callable[[np.random.Generator, Indices], Tensor]


@dataclass(frozen=True)
class DifferNetSettings(MethodSettings):
    """The settings of DifferNet; none is a flag.

    As published, a test image is rotated by 64 random angles. An exported graph must give the same
    score for the same image, so here the angles are spaced evenly.
    """

    angles: int = option(64, "rotations of a test image, spaced evenly; a multiple of 4")
    cached: int | None = option(
        None,
        "random rotations of a training image whose features are computed once, next to those at "
        "right angles; None for new rotations in every step, as published",
    )
    blocks: int = option(8, "blocks of the flow")
    hidden: int = option(2048, "width of the hidden layers of the flow's networks")
    standardised: bool = option(False, "the flow reads features of mean 0 and deviation 1")
    noise: float = option(0.0, "deviation of the noise that is added to the features in training")
    learning_rate: float = option(2e-4, "learning rate")

    def __post_init__(self) -> None:
        if self.angles < RIGHT_ANGLES or self.angles % RIGHT_ANGLES:
            raise TrainError(f"angles {self.angles} is not a multiple of {RIGHT_ANGLES}; give one")
        height, width = self.size
        coarsest = 2 ** (SCALES - 1)
        if height != width or height % coarsest:
            raise TrainError(
                f"an input of {height} x {width} cannot be rotated and halved; give a --size that "
                f"{coarsest} divides"
            )
        if self.standardised and self.cached is None:
            raise TrainError("features that are not cached have no statistics; set cached")


class DifferNet(Method):
    """DifferNet on AlexNet as published, or on layer3 of a residual network."""

    name: ClassVar[str] = "differnet"
    Settings = DifferNetSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo", "elpv_mono", "mvtec_bottle")
    outputs: ClassVar[tuple[str, ...]] = ("score",)
    # The coarsest scale of a residual network has at least one position.
    smallest_size: ClassVar[int] = 64
    trains_on_pixels: ClassVar[bool] = True

    settings: DifferNetSettings
    mean: Tensor  # [D], of the features of good images
    std: Tensor  # [D]

    def __init__(self, settings: DifferNetSettings) -> None:
        super().__init__(settings)
        side = settings.geometry.height
        self.backbone = RotatedPyramid(settings.backbone, LEVEL, side, SCALES, settings.angles)
        if min(self.backbone.grids(side, side)[-1]) < 1:
            raise TrainError(
                f"--size {side} is too small for {settings.backbone} at a quarter of it; use a "
                "larger one"
            )
        dimensions = sum(self.backbone.channels)
        self.register_buffer("mean", torch.zeros(dimensions))
        self.register_buffer("std", torch.ones(dimensions))
        self.flow = VectorFlow(dimensions, settings.blocks, settings.hidden)

    @classmethod
    def settings_for(cls, backbone: str) -> DifferNetSettings:
        if not backbone_facts(backbone).light:
            return DifferNetSettings(backbone, Geometry("stretch", 448, 448))
        return DifferNetSettings(
            backbone,
            Geometry("stretch", 256, 256),
            angles=RIGHT_ANGLES,
            cached=0,
            blocks=4,
            hidden=256,
            standardised=True,
            # Without noise, the flow learns the few vectors of a small data set by heart, and good
            # images that it has not seen get scores a thousand times as high.
            noise=0.3,
            learning_rate=1e-3,
        )

    @classmethod
    def steps(cls, settings: DifferNetSettings, images: int, epochs: int | None) -> int:
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
        """Compute score [N] and an empty map [N, 0, 0] from levels [N * angles, C, h, w].

        The score is the logarithm of the mean of z^2 over the rotations of an image and all
        dimensions (see `log_energy`). The authors' code scores by the mean itself.
        """
        z, _ = self.flow((mean_features(levels) - self.mean) / self.std)
        squares = z.square().view(-1, self.settings.angles, z.shape[1])
        score = log_energy(squares.mean((1, 2)))
        return score, no_map(score)

    # ------------------------------------------------------------ training

    def fit(self, fit: Fit) -> int:
        self.eval()
        phase = fit.phase("training")
        if phase.state is None:
            self.flow.initialise(torch.Generator().manual_seed(fit.seed))
        rate = self.settings.learning_rate
        optimiser = torch.optim.Adam(self.flow.parameters(), rate, BETAS, EPSILON, WEIGHT_DECAY)
        steps = Steps(fit, phase, [optimiser], fit.steps)
        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            draw = self._prepare_vectors(fit, folder)

            def loss_of(step: int, chosen: Indices) -> Tensor:
                rng = np.random.default_rng((fit.seed, step))
                vectors = draw(rng, chosen)
                if self.settings.noise:
                    vectors = vectors + self._noise(rng, vectors)
                return self.loss(vectors)

            self.train()
            done = steps.run(batch_indices(len(fit.images), BATCH, fit.seed, steps.start), loss_of)
        self.eval()
        return done

    def _prepare_vectors(self, fit: Fit, folder: str) -> Draw:
        """Return the function that draws the vectors of a step, and set the statistics.

        folder: as in `collect_features`.
        """
        if self.settings.cached is None:
            return partial(self._fresh_vectors, fit)
        vectors = collect_features(fit.images, self._all_vectors, self.device, folder, fit.progress)
        if self.settings.standardised:
            mean, std = channel_statistics(vectors.reshape(-1, vectors.shape[2], 1, 1))
            self.mean.copy_(mean)
            self.std.copy_(std)
        return partial(self._cached_vectors, vectors)

    def _fresh_vectors(self, fit: Fit, rng: np.random.Generator, chosen: Indices) -> Tensor:
        """Rotate the chosen images by random angles; return vectors [images * ROTATIONS, D]."""
        images = []
        for index in chosen:
            images += [np.asarray(fit.images[index])] * ROTATIONS
        return self._vectors(rotate_images(images, rng.uniform(-180, 180, len(images)).tolist()))

    def _cached_vectors(self, vectors: Array, rng: np.random.Generator, chosen: Indices) -> Tensor:
        """Draw rotations of the chosen images from vectors [n, rotations, D]; as `_fresh_vectors`.

        The result is [images * ROTATIONS, D].
        """
        rotations = rng.integers(vectors.shape[1], size=(len(chosen), ROTATIONS))
        drawn = vectors[chosen[:, None], rotations].reshape(-1, vectors.shape[2])
        return torch.from_numpy(drawn).to(self.device)

    def _all_vectors(self, image: Tensor) -> Tensor:
        """Compute the vectors of all rotations of one image that are cached, [1, rotations, D]."""
        vectors = mean_features(self.backbone.extract(image))
        if self.settings.cached:
            pixels = image[0].cpu().numpy()
            # By the content, so that a training without some of the images has the same ones.
            rng = np.random.default_rng(zlib.crc32(pixels.tobytes()))
            degrees = rng.uniform(-180, 180, self.settings.cached).tolist()
            others = self._vectors(rotate_images([pixels] * len(degrees), degrees))
            vectors = torch.cat([vectors, others])
        return vectors[None]

    def _noise(self, rng: np.random.Generator, vectors: Tensor) -> Tensor:
        """Draw noise for vectors [N, D], in multiples of the deviations of their dimensions."""
        drawn = rng.normal(0, self.settings.noise, tuple(vectors.shape)).astype(np.float32)
        return torch.from_numpy(drawn).to(vectors) * self.std

    @torch.no_grad()
    def _vectors(self, image: Tensor) -> Tensor:
        """Compute the vectors [N, D] of images, uint8 [N, S, S, 3], as they are."""
        normalised = self.backbone.normalise(image.to(self.device))
        return mean_features(self.backbone.upright(normalised))

    def loss(self, vectors: Tensor) -> Tensor:
        """Compute the negative log-likelihood of vectors [N, D] per dimension, without constant."""
        z, log_determinant = self.flow((vectors - self.mean) / self.std)
        energy = 0.5 * z.square().sum(1)
        loss: Tensor = (energy - log_determinant).mean() / z.shape[1]
        return loss

    # ------------------------------------------------------------ the exported form

    def fused(self) -> nn.Module:
        return build_fused(self, FusedDifferNet)


def mean_features(levels: Sequence[Tensor]) -> Tensor:
    """Return the means of levels [N, C, h, w] over their positions as one vector each, [N, D]."""
    return torch.cat([level.mean((2, 3)) for level in levels], 1)


class FusedDifferNet(nn.Module):
    """DifferNet for export; see `FusedRotatedPyramid` and `FusedVectorFlow`."""

    def __init__(self, method: DifferNet) -> None:
        super().__init__()
        self.input, pyramid = fold_backbone(method.backbone)
        assert isinstance(pyramid, RotatedPyramid)
        self.backbone = FusedRotatedPyramid(pyramid, black=-self.input.mean)
        self.vectors = fp32(_StandardMeans(method.mean, method.std))
        self.flow = FusedVectorFlow(method.flow)
        self.score = fp32(_Score(method.settings.angles * len(method.mean)))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(*self.backbone(self.input(image)))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        score = self.score(self.flow(self.vectors(*levels)))
        return score, no_map(score)


class _StandardMeans(nn.Module):
    """`mean_features`, standardised: sums over positions need FP32."""

    mean: Tensor
    factor: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("factor", 1 / std)

    def forward(self, *levels: Tensor) -> Tensor:
        return (mean_features(levels) - self.mean) * self.factor


class _Score(nn.Module):
    """`log_energy` of the mean z^2 of so many values: latents [N * angles, D] to [N]."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.values = values

    def forward(self, z: Tensor) -> Tensor:
        return log_energy((z * z).reshape(-1, self.values).mean(1))
