"""A method whose backbone is fine-tuned on the good images before it is fitted as usual.

It has two backbones: `pretrained`, from which every training starts, and `backbone`, the fine-tuned
one that is exported. A subclass derives from `TunedBackbone` and from the method that is fitted on
the tuned features, in this order; the exported graph is that method's.

BatchNorms of pretrained stages keep their statistics and parameters. A backbone whose BatchNorms
were folded into its convolutions is therefore trained exactly as one that still has them.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import nn
from torch.optim import Optimizer

from flawline.options import option
from flawline.runtime.image import Image
from flawline.train import TrainError
from flawline.train.backbones import create_backbone
from flawline.train.backbones.base import Backbone
from flawline.train.loop import half_cosine
from flawline.train.method import Fit, Method, MethodSettings, Phase
from flawline.train.progress import Progress

if TYPE_CHECKING:
    from typing_extensions import Self

FINE_TUNING = "fine-tuning"
LEVELS = (1, 2, 3)


@dataclass(frozen=True)
class TuningSettings(MethodSettings):
    """The settings of every fine-tuning.

    A class that adds them to those of a method calls `__post_init__` of both.
    """

    first_level: int = option(
        2,
        "first stage of the backbone that is fine-tuned, 1 to 3; the ones before stay as they are",
    )
    batch: int = option(8, "good images of a step; their synthetic partners are added to them")

    def __post_init__(self) -> None:
        if self.first_level not in LEVELS:
            raise TrainError(f"first_level {self.first_level} is not from 1 to 3")


Settings = TypeVar("Settings", bound=TuningSettings)


def with_tuning(defaults: MethodSettings, kind: type[Settings]) -> Settings:
    """Return settings of this kind with the values of `defaults`, and its own for all others."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(defaults):
        values[field.name] = getattr(defaults, field.name)
    return kind(**values)


class TunedBackbone(Method):
    """A method that is fitted on a fine-tuned backbone; see the module.

    A subclass has `phases`, FINE_TUNING and that of the fit after it. At the end of its `__init__`
    it calls `train`, which freezes what it does not train.
    """

    trains_on_pixels: ClassVar[bool] = True
    # Optimiser steps of the default length.
    light_steps: ClassVar[int]

    backbone: Backbone

    def __init__(self, settings: TuningSettings) -> None:
        super().__init__(settings)
        self.pretrained = create_backbone(settings.backbone, self.backbone.levels)
        # A backbone that cannot be trained further is an error here, before any image is read.
        self.pretrained.stages_from(settings.first_level)

    def backbones(self) -> dict[str, Backbone]:
        return {"pretrained": self.pretrained}

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.backbone.requires_grad_(False)
        self.backbone.eval()
        return self

    @classmethod
    def steps(cls, settings: Any, images: int, epochs: int | None) -> int:
        if epochs is None:
            return cls.light_steps
        steps: int = math.ceil(epochs * images / settings.batch)
        return steps

    def load_weights(self, weights: str, seed: int, images: Sequence[Image]) -> str:
        return f"{super().load_weights(weights, seed, images)}, fine-tuned"

    def teaching(self) -> None:
        """Return None: the backbone was tuned on images of the part, for each fold without it."""
        return

    @abc.abstractmethod
    def tune(self, fit: Fit, phase: Phase) -> int:
        """Fine-tune `backbone` until `fit.steps` or the deadline; return the steps done.

        In a new training, `backbone` has the pretrained weights.
        """

    @abc.abstractmethod
    def fit_tuned(self, fit: Fit, progress: Progress) -> None:
        """Fit the rest of the method on the features of the tuned backbone, in eval mode."""

    def fit(self, fit: Fit) -> int:
        """Fine-tune in steps, then fit the rest in one pass, which the deadline does not stop."""
        tuning = fit.phase(FINE_TUNING)
        if not tuning.done:
            if tuning.state is None:
                self.backbone.load_state_dict(self.pretrained.state_dict())
            self.train()
            done = self.tune(fit, tuning)
            self.eval()
            if done < fit.steps:
                return done
            tuning.finish()
        rest = fit.phase(self.phases[1])
        rest.save({"step": fit.steps})
        self.fit_tuned(fit, fit.progress)
        rest.finish()
        return fit.steps


def convolution_parameters(parts: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters of all convolutions of some modules: what is trained of them."""
    parameters: list[nn.Parameter] = []
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                parameters += list(module.parameters())
    return parameters


def set_rates(optimiser: Optimizer, share: float) -> None:
    """Set the learning rates after a share of the training: of each group, from its `initial`."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial"] * half_cosine(share)
