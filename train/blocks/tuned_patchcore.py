"""PatchCore on a backbone that was fine-tuned to recognise synthetic anomalies.

The image is judged by PatchCore alone, so that the exported graph is PatchCore's.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from flawline.options import option
from flawline.runtime.image import Image
from flawline.train.anomalies.three_way import ThreeWay
from flawline.train.backbones.facts import RANDOM
from flawline.train.blocks.patch_classifier import PatchClassifier, Training, train_classifier
from flawline.train.blocks.tuned_backbone import (
    FINE_TUNING,
    TunedBackbone,
    TuningSettings,
    with_tuning,
)
from flawline.train.loop import Stateful
from flawline.train.method import Fit, Phase
from flawline.train.methods.patchcore import PatchCore, PatchCoreSettings
from flawline.train.progress import Progress

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class TunedSettings(TuningSettings, PatchCoreSettings):
    """The settings of PatchCore and those of the fine-tuning."""

    learning_rate: float = option(0.03, "of new weights at the start; pretrained ones get 3 %")

    def __post_init__(self) -> None:
        TuningSettings.__post_init__(self)
        PatchCoreSettings.__post_init__(self)


class SeriesOfSteps(NamedTuple):
    """The synthetic anomalies of a training.

    at: returns the series of a step. others: what they add to a snapshot, by its names.
    """

    at: Callable[[int], ThreeWay]
    others: Mapping[str, Stateful]


class TunedPatchCore(TunedBackbone, PatchCore):
    """PatchCore after fine-tuning; a subclass says with which synthetic anomalies."""

    phases: ClassVar[tuple[str, ...]] = (FINE_TUNING, "memory bank")
    # The papers take 65 536, on a GPU. The loss falls little after 40 steps, and more steps move
    # the features further away from those of ImageNet.
    light_steps: ClassVar[int] = 60

    settings: TunedSettings
    fresh_stage: Tensor  # bool: whether the weights had nothing for the stage after the levels

    def __init__(self, settings: TunedSettings) -> None:
        super().__init__(settings)
        self.pretrained_stage, _ = self.pretrained.stage_after(RANDOM, 0)
        self.register_buffer("fresh_stage", torch.tensor(True))
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.pretrained_stage.requires_grad_(False)
        self.pretrained_stage.eval()
        return self

    @classmethod
    def settings_for(cls, backbone: str) -> TunedSettings:
        kind: type[TunedSettings] = cls.Settings  # type: ignore[assignment]
        return with_tuning(PatchCore.settings_for(backbone), kind)

    def load_weights(self, weights: str, seed: int, images: Sequence[Image]) -> str:
        description = super().load_weights(weights, seed, images)
        stage, known = self.pretrained.stage_after(weights, seed)
        self.pretrained_stage.load_state_dict(stage.state_dict())
        self.fresh_stage.fill_(not known)
        origin = "from the same weights" if known else f"random, seed {seed}"
        return f"{description}; last stage {origin}; {self.anomaly_origin()}"

    def teaching(self) -> None:
        """Return None: the backbone was tuned on images of the part, for each fold without it."""
        return

    @abc.abstractmethod
    def anomaly_origin(self) -> str:
        """Return which synthetic anomalies the fine-tuning recognises, and what is not published.

        Raises TrainError where something that they need is missing.
        """

    def start_like(self, other: Self) -> None:
        super().start_like(other)
        self.pretrained_stage.load_state_dict(other.pretrained_stage.state_dict())
        self.fresh_stage.copy_(other.fresh_stage)

    @abc.abstractmethod
    def series(self, fit: Fit, classifier: PatchClassifier) -> SeriesOfSteps:
        """Return the images that a classifier, which is trained with them, recognises."""

    def keep(self, classifier: PatchClassifier) -> None:
        """Take what is needed of the classifier besides its backbone, which is `self.backbone`."""

    def fit_tuned(self, fit: Fit, progress: Progress) -> None:
        self.fill_bank(fit, progress)

    def tune(self, fit: Fit, phase: Phase) -> int:
        settings = self.settings
        classifier = PatchClassifier(
            self.backbone,
            copy.deepcopy(self.pretrained_stage),
            bool(self.fresh_stage),
            settings.first_level,
            fit.seed,
        ).to(self.device)
        series = self.series(fit, classifier)
        training = Training(settings.batch, settings.learning_rate)
        done = train_classifier(classifier, series.at, fit, phase, training, series.others)
        self.keep(classifier)
        return done
