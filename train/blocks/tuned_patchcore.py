"""PatchCore on a backbone that was fine-tuned to recognise synthetic anomalies.

The image is judged by PatchCore alone, so that the exported graph is PatchCore's. The method has
two backbones: `pretrained`, from which every training starts, and `backbone`, the fine-tuned one
that is exported.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from flawline.options import option
from flawline.runtime.image import Image
from flawline.train import TrainError
from flawline.train.anomalies.three_way import ThreeWay
from flawline.train.backbones import create_backbone
from flawline.train.backbones.base import Backbone
from flawline.train.backbones.facts import RANDOM
from flawline.train.blocks.patch_classifier import PatchClassifier, Training, train_classifier
from flawline.train.loop import Stateful
from flawline.train.method import Fit, Phase
from flawline.train.methods.patchcore import PatchCore, PatchCoreSettings

if TYPE_CHECKING:
    from typing_extensions import Self

# Optimiser steps: the papers take 65 536, on a GPU. The loss falls little after 40 steps, and more
# steps move the features further away from those of ImageNet.
LIGHT_STEPS = 60
LEVELS = (1, 2, 3)


@dataclass(frozen=True)
class TunedSettings(PatchCoreSettings):
    """The settings of PatchCore and those of the fine-tuning."""

    first_level: int = option(
        2,
        "first stage of the backbone that is fine-tuned, 1 to 3; the ones before stay as they are",
    )
    batch: int = option(8, "good images of a step; there are two synthetic ones to each")
    learning_rate: float = option(0.03, "of new weights at the start; pretrained ones get 3 %")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first_level not in LEVELS:
            raise TrainError(f"first_level {self.first_level} is not from 1 to 3")


class SeriesOfSteps(NamedTuple):
    """The synthetic anomalies of a training.

    at: returns the series of a step. others: what they add to a snapshot, by its names.
    """

    at: Callable[[int], ThreeWay]
    others: Mapping[str, Stateful]


class TunedPatchCore(PatchCore):
    """PatchCore after fine-tuning; a subclass says with which synthetic anomalies."""

    phases: ClassVar[tuple[str, ...]] = ("fine-tuning", "memory bank")
    trains_on_pixels: ClassVar[bool] = True

    settings: TunedSettings
    fresh_stage: Tensor  # bool: whether the weights had nothing for the stage after the levels

    def __init__(self, settings: TunedSettings) -> None:
        super().__init__(settings)
        self.pretrained = create_backbone(settings.backbone, self.backbone.levels)
        self.pretrained_stage, _ = self.pretrained.stage_after(RANDOM, 0)
        self.register_buffer("fresh_stage", torch.tensor(True))
        self.train(self.training)

    def backbones(self) -> dict[str, Backbone]:
        return {"pretrained": self.pretrained}

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in (self.backbone, self.pretrained_stage):
            module.requires_grad_(False)
            module.eval()
        return self

    @classmethod
    def settings_for(cls, backbone: str) -> TunedSettings:
        values = {}
        defaults = PatchCore.settings_for(backbone)
        for field in dataclasses.fields(defaults):
            values[field.name] = getattr(defaults, field.name)
        settings: TunedSettings = cls.Settings(**values)  # type: ignore[assignment]
        return settings

    @classmethod
    def steps(cls, settings: TunedSettings, images: int, epochs: int | None) -> int:
        if epochs is None:
            return LIGHT_STEPS
        return -(-epochs * images // settings.batch)

    def load_weights(self, weights: str, seed: int, images: Sequence[Image]) -> str:
        description = super().load_weights(weights, seed, images)
        stage, known = self.pretrained.stage_after(weights, seed)
        self.pretrained_stage.load_state_dict(stage.state_dict())
        self.fresh_stage.fill_(not known)
        origin = "from the same weights" if known else f"random, seed {seed}"
        return f"{description}, fine-tuned; last stage {origin}; {self.anomaly_origin()}"

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

    def fit(self, fit: Fit) -> int:
        """Fine-tune in steps, then fill the bank, which the deadline does not stop."""
        tuning = fit.phase("fine-tuning")
        if not tuning.done:
            self.train()
            done = self._tune(fit, tuning)
            self.eval()
            if done < fit.steps:
                return done
            tuning.finish()
        bank = fit.phase("memory bank")
        bank.save({"step": fit.steps})
        self.fill_bank(fit, fit.progress)
        bank.finish()
        return fit.steps

    def _tune(self, fit: Fit, phase: Phase) -> int:
        settings = self.settings
        if phase.state is None:
            self.backbone.load_state_dict(self.pretrained.state_dict())
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
