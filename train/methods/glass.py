"""GLASS: SimpleNet's graph, trained against anomalies of images and of features.

Chen, Luo, Lv and Zhang, "A unified anomaly synthesis strategy with gradient ascent for industrial
anomaly detection and localization" (ECCV 2024), with the constants of the authors' code. Local
anomalies are textures, blended into parts of the good images. Global ones are noise on the features
of good patches, which gradient ascent moves towards what the discriminator takes for good, within a
limited distance: from the patch itself (manifold), or from the mean of its position (hypersphere).

Differences from their code: the textures are procedural ones unless a folder is named, there are no
masks of the foreground, and the mean features always belong to the adapter of the step instead of
that of the epoch's begin. The authors choose between manifold and hypersphere by a table of their
products; here short trainings of both are compared on synthetic anomalies of another kind.

Their discriminator ends in a sigmoid. The scores and maps here are its logits, in the sign of
SimpleNet's graph: the order of the images is the same, and strong defects still differ.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flawline.options import option
from flawline.runtime.image import Geometry, Image
from flawline.train import TrainError
from flawline.train.anomalies.blend import Blended
from flawline.train.anomalies.products import TEXTURE_SETTINGS
from flawline.train.anomalies.textured import Recipe, Textured
from flawline.train.anomalies.textures import open_textures
from flawline.train.backbones import backbone_facts
from flawline.train.blocks.adapted_patches import AdaptedPatches, AdaptedSettings
from flawline.train.blocks.discriminator import HeadTraining, even_decay
from flawline.train.blocks.feature_vectors import draw_positions, mean_deviation
from flawline.train.blocks.gradient_ascent import LIMITED_EVERY, AscentLoss, Good
from flawline.train.blocks.local_anomalies import LocalAnomalies
from flawline.train.blocks.patches import collect_features
from flawline.train.blocks.quick_patches import QuickPatches
from flawline.train.judging import evaluate
from flawline.train.loop import choose_steps
from flawline.train.method import Fit, Phase
from flawline.train.metrics import auroc

Array = npt.NDArray[Any]

BATCH = 8  # images
ADAPTER_RATE = 1e-4
DISCRIMINATOR_RATE = 2e-4
PUBLISHED_EPOCHS = 640
PUBLISHED_IMAGES = 400  # of an epoch, at most
LIGHT_STEPS = 1400

MANIFOLD = "manifold"
HYPERSPHERE = "hypersphere"
DISTRIBUTIONS = (MANIFOLD, HYPERSPHERE)
AUTO = "auto"
# Of the steps, in each of the two trainings that are compared.
TRIAL_SHARE = 0.1
# Good images that the two are compared on.
JUDGED_IMAGES = 64


@dataclass(frozen=True)
class GlassSettings(AdaptedSettings):
    """The settings of GLASS. The defaults are the published values."""

    textures: str | None = option(
        None,
        "folder of images that local anomalies are filled with, such as DTD; default: procedural "
        "textures",
        flag=True,
        anomaly_flag=True,
    )
    distribution: Literal["auto", "manifold", "hypersphere"] = option(
        AUTO,
        "where the normal features lie: manifold, hypersphere, or auto to choose by synthetic "
        "anomalies; default auto",
        flag=True,
    )
    own: float = option(0.0, "share of the local anomalies that are filled with another good image")
    matched: bool = option(False, "textures in grey images are grey")
    noise: float | None = option(
        0.015, "standard deviation of the noise on features; None to take `relative_noise`"
    )
    relative_noise: float = option(
        0.25, "the same as a multiple of the features' standard deviation"
    )
    ascent_steps: int = option(20, "steps of the gradient ascent; 0 for none")
    ascent_statistics: bool = option(
        True, "the passes of the ascent update the running statistics of BatchNorm"
    )
    vectors: int | None = option(None, "good patches of a batch that a step trains on; None: all")
    local_images: int = option(BATCH, "images with local anomalies of a step")
    local_vectors: int | None = option(None, "their patches that a step trains on; None: all")
    first_rate: float = option(
        1.0, "learning rates of the first step, as a multiple of the paper's"
    )
    last_rate: float = option(1.0, "the same of the last step; between them they decay evenly")
    averaged_share: float = option(0.0, "share of the training over which weights are averaged")

    def __post_init__(self) -> None:
        if self.distribution not in (AUTO, MANIFOLD, HYPERSPHERE):
            raise TrainError(
                f"--distribution {self.distribution} is unknown; known: {AUTO}, {MANIFOLD}, "
                f"{HYPERSPHERE}"
            )


@dataclass(frozen=True)
class Material:
    """What a training draws its vectors from.

    features: of the good images, [images, positions, D]. mean: of them, [positions, D]. sigma:
    standard deviation of the noise. local: draws vectors of images with anomalies.
    """

    features: Array
    mean: Tensor
    sigma: float
    local: LocalAnomalies

    def good(self, chosen: Array, count: int | None, seed: int, step: int) -> Good:
        """Draw good vectors of images and their noise; see `draw_positions` for the arguments."""
        device = self.mean.device
        vectors, positions = draw_positions(self.features, chosen, count, (seed, step))
        generator = torch.Generator(device).manual_seed((seed << 32) + step)
        noise = torch.randn(vectors.shape, generator=generator, device=device)
        return Good(
            torch.from_numpy(vectors).to(device),
            torch.from_numpy(positions).to(device),
            self.sigma * noise,
        )


class Glass(AdaptedPatches):
    """GLASS, trained as published or in a light setting for small backbones."""

    name: ClassVar[str] = "glass"
    trains_against: ClassVar[tuple[str, ...]] = ("texture",)
    Settings = GlassSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo", "elpv_mono")
    phases: ClassVar[tuple[str, ...]] = (*DISTRIBUTIONS, "training")
    trains_on_pixels: ClassVar[bool] = True

    settings: GlassSettings

    @classmethod
    def settings_for(cls, backbone: str) -> GlassSettings:
        if not backbone_facts(backbone).light:
            return GlassSettings(backbone, Geometry("shorter-crop", 288, 288, 288))
        # As SimpleNet's light setting, for a training of some minutes on two cores. Procedural
        # textures are coloured, which would tell them from grey products.
        return GlassSettings(
            backbone,
            Geometry("stretch", 256, 256),
            level_dim=384,
            target_dim=384,
            matched=True,
            noise=None,
            ascent_steps=LIMITED_EVERY,
            ascent_statistics=False,
            vectors=512,
            local_images=2,
            local_vectors=256,
            first_rate=3.0,
            last_rate=0.1,
            averaged_share=0.25,
        )

    @classmethod
    def complete_settings(cls, settings: GlassSettings, data: Path) -> GlassSettings:
        # A folder that cannot be used is an error here, before any image is read.
        open_textures(settings.textures, seed=0)
        return settings

    @classmethod
    def steps(cls, settings: GlassSettings, images: int, epochs: int | None) -> int:
        # The authors end an epoch after 50 steps.
        counted = images if epochs else min(images, PUBLISHED_IMAGES)
        return choose_steps(
            settings.backbone,
            counted,
            epochs,
            batch=BATCH,
            published=PUBLISHED_EPOCHS,
            light=LIGHT_STEPS,
        )

    @classmethod
    def anomalies(cls, settings: GlassSettings, images: Sequence[Image], seed: int) -> Textured:
        recipe = Recipe(own=settings.own, matched=settings.matched)
        return Textured(images, open_textures(settings.textures, seed), recipe, seed)

    # ------------------------------------------------------------ training

    def fit(self, fit: Fit) -> int:
        self.eval()
        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            features_of = QuickPatches(self)
            features = collect_features(fit.images, features_of, self.device, folder, fit.progress)
            distribution: str = self.settings.distribution
            if distribution == AUTO:
                trial_steps = max(1, round(TRIAL_SHARE * fit.steps))
                half = self._material(features[::2], features_of, fit.images[::2], fit.seed)
                for name in DISTRIBUTIONS:
                    done = self._try(name, half, trial_steps, fit)
                    if done < trial_steps:
                        return done
                distribution = self._better(fit)
            else:
                for name in DISTRIBUTIONS:
                    fit.phase(name)  # is not needed
            material = self._material(features, features_of, fit.images, fit.seed)
            return self._train(fit.phase("training"), distribution, material, fit.steps)

    def _material(
        self,
        features: Array,
        features_of: Callable[[Tensor], Tensor],
        images: Sequence[Image],
        seed: int,
    ) -> Material:
        settings = self.settings
        sigma = settings.noise
        if sigma is None:
            sigma = settings.relative_noise * mean_deviation(features)
        local = LocalAnomalies(
            self.anomalies(settings, images, seed),
            features_of,
            self.backbone.grids(*settings.size)[0],
            settings.local_images,
            settings.local_vectors,
            seed,
        )
        mean = torch.from_numpy(features.mean(0)).to(self.device)
        return Material(features, mean, sigma, local)

    def _try(self, distribution: str, half: Material, steps: int, fit: Fit) -> int:
        """Train for some steps, and store the AUROC on synthetic anomalies in the facts.

        half: of every second image; the others are judged. Returns the steps done.
        """
        phase = fit.phase(distribution)
        if phase.done:
            return steps
        done = self._train(phase, distribution, half, steps)
        if done < steps:
            return done
        judged = fit.images[1::2] or fit.images
        count = min(JUDGED_IMAGES, len(judged))
        blended = Blended(judged, TEXTURE_SETTINGS, fit.seed)
        images: list[Image] = []
        for draw in range(count):
            normal, synthetic, _ = blended.sample(draw)
            images += [normal, synthetic]
        scores, _ = evaluate(self, images, fit.progress, f"judging {distribution}")
        labels = np.arange(len(images)) % 2 == 1
        fit.facts[f"{distribution}_auroc"] = f"{auroc(labels, scores):.4f}"
        phase.finish()
        return steps

    def _better(self, fit: Fit) -> str:
        """Return the distribution of the trial that judged better, and note both."""
        found = {name: float(fit.facts[f"{name}_auroc"]) for name in DISTRIBUTIONS}
        better = max(DISTRIBUTIONS, key=found.__getitem__)
        values = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        fit.notes.append(f"distribution: {better} (AUROC on synthetic anomalies: {values})")
        return better

    def _train(self, phase: Phase, distribution: str, material: Material, total: int) -> int:
        """Train adapter and discriminator for `total` steps; return how many are done."""
        fit = phase.fit
        settings = self.settings
        if phase.state is None:
            self.initialise(fit.seed)
        training = HeadTraining(
            optimisers=(
                torch.optim.Adam(self.adapter.parameters(), lr=ADAPTER_RATE, weight_decay=1e-5),
                torch.optim.AdamW(self.discriminator.parameters(), lr=DISCRIMINATOR_RATE),
            ),
            factor_at=even_decay(settings.first_rate, settings.last_rate),
            averaged_share=settings.averaged_share,
            images=len(material.features),
            batch=BATCH,
            total=total,
        )

        loss = AscentLoss(
            self.adapter, self.discriminator, settings.ascent_steps, settings.ascent_statistics
        )

        def loss_of(step: int, chosen: Array) -> Tensor:
            good = material.good(chosen, settings.vectors, fit.seed, step)
            local = material.local.of_step(step, self.device)
            mean = material.mean if distribution == HYPERSPHERE else None
            return loss(good, local, mean)

        head = nn.Sequential(self.adapter, self.discriminator)
        self.train()
        done = training.run(head, fit, phase, loss_of)
        self.eval()
        return done
