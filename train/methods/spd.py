"""SPD: PaDiM on features that were trained to react to small local differences.

Zou et al., "SPot-the-Difference self-supervised pre-training for anomaly detection and
segmentation" (ECCV 2022). The paper adds its loss to the training on ImageNet, supervised or
SimSiam's, from random weights; the resulting backbone serves any method, in its tables PaDiM. Here
a pretrained backbone is fine-tuned on the good images alone, in a few steps.

The area and the proportions of the patches and the weight of the loss are taken from a description
of the paper; they were not compared with its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flawline.options import option
from flawline.runtime.image import Image
from flawline.train.anomalies.smooth_blend import SmoothBlend
from flawline.train.blocks.local_differences import (
    LocalDifferences,
    LocalTraining,
    train_differences,
)
from flawline.train.blocks.tuned_backbone import (
    FINE_TUNING,
    TunedBackbone,
    TuningSettings,
    with_tuning,
)
from flawline.train.method import Fit, Phase
from flawline.train.methods.padim import PaDiM, PaDiMSettings
from flawline.train.progress import Progress


@dataclass(frozen=True)
class SPDSettings(TuningSettings, PaDiMSettings):
    """The settings of PaDiM and those of the fine-tuning."""

    learning_rate: float = option(
        0.001, "step of a convolution's weights at the start, relative to their root mean square"
    )
    patch_weight: float = option(
        0.1, "of the similarity to images with a blended patch in the loss"
    )

    def __post_init__(self) -> None:
        TuningSettings.__post_init__(self)
        PaDiMSettings.__post_init__(self)


class SPD(TunedBackbone, PaDiM):
    """SPD, at the run-time cost of PaDiM."""

    name: ClassVar[str] = "spd"
    trains_against: ClassVar[tuple[str, ...]] = ("patch",)
    Settings = SPDSettings
    tuned_on: ClassVar[tuple[str, ...]] = ("demo", "elpv_mono", "mvtec_bottle")
    phases: ClassVar[tuple[str, ...]] = (FINE_TUNING, "Gaussians")
    light_steps: ClassVar[int] = 60

    settings: SPDSettings

    def __init__(self, settings: SPDSettings) -> None:
        super().__init__(settings)
        self.train(self.training)

    @classmethod
    def settings_for(cls, backbone: str) -> SPDSettings:
        return with_tuning(PaDiM.settings_for(backbone), SPDSettings)

    @classmethod
    def anomalies(cls, settings: SPDSettings, images: Sequence[Image], seed: int) -> SmoothBlend:
        return SmoothBlend(images, seed)

    def load_weights(self, weights: str, seed: int, images: Sequence[Image]) -> str:
        return f"{super().load_weights(weights, seed, images)} with {SmoothBlend.description}"

    def tune(self, fit: Fit, phase: Phase) -> int:
        settings = self.settings
        training = LocalTraining(
            settings.first_level, settings.batch, settings.learning_rate, settings.patch_weight
        )
        loss = LocalDifferences(self.backbone, self.pretrained, training)
        series = self.anomalies(settings, fit.images, fit.seed)
        return train_differences(loss, series, fit, phase, training)

    def fit_tuned(self, fit: Fit, progress: Progress) -> None:
        self.fit_gaussians(fit, progress)
