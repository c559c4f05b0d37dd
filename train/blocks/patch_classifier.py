"""A classifier of normal images, patches and scars, whose backbone is trained with it.

Li et al., "CutPaste" (CVPR 2021): the pooled features of the last stage, an MLP, and cross entropy
over three classes. What is lighter here than there: the first stages keep their weights, and
BatchNorms of pretrained stages keep their statistics and parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.train.anomalies.three_way import ThreeWay
from flawline.train.backbones.base import Backbone
from flawline.train.blocks.tuned_backbone import convolution_parameters, set_rates
from flawline.train.loop import Stateful, Steps, half_precision
from flawline.train.method import Fit, Phase

if TYPE_CHECKING:
    from typing_extensions import Self

CLASSES = 3
HIDDEN = (512, 128)
MOMENTUM = 0.9
WEIGHT_DECAY = 3e-5
# Learning rate of pretrained weights, relative to that of new ones. Their BatchNorms do not adapt
# to new weights: at a tenth, the classifier learns less, and little is left of the features.
PRETRAINED_RATE = 0.03


class PatchClassifier(nn.Module):
    """A backbone, the stage after its last level, and a head for three classes.

    backbone: is trained from `first_level` on. stage: is trained too. fresh: whether the weights of
    the stage are random ones; a pretrained stage keeps its BatchNorms. seed: of the head.
    """

    def __init__(
        self, backbone: Backbone, stage: nn.Module, fresh: bool, first_level: int, seed: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.stage = stage
        self.fresh = fresh
        self.head = _new_head(channels_after(stage, backbone.channels[-1]), seed)
        self.requires_grad_(False)
        self.pretrained = list(backbone.stages_from(first_level))
        self.new: list[nn.Module] = [self.head]
        (self.new if fresh else self.pretrained).append(stage)
        for parameters in self.trained().values():
            for parameter in parameters:
                parameter.requires_grad_(True)

    def trained(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that are trained: the `pretrained` ones and the `new` ones."""
        new: list[nn.Parameter] = []
        for part in self.new:
            new += list(part.parameters())
        return {"pretrained": convolution_parameters(self.pretrained), "new": new}

    def train(self, mode: bool = True) -> Self:
        """Set training or eval mode; BatchNorms of pretrained parts always stay in eval mode."""
        super().train(mode)
        self.backbone.eval()
        if not self.fresh:
            self.stage.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Compute the logits [N, 3] of images, uint8 BGR [N, H, W, 3]."""
        x = self.backbone.normalise(image).contiguous(memory_format=torch.channels_last)
        last: Tensor = self.backbone(x)[-1]
        logits: Tensor = self.head(pooled(self.stage, last))
        return logits


def pooled(stage: nn.Module, level: Tensor) -> Tensor:
    """Compute the embedding [N, C] of a level [N, c, h, w]: the mean after one more stage."""
    after: Tensor = stage(level)
    return after.mean((2, 3))


@torch.no_grad()
def channels_after(stage: nn.Module, channels: int) -> int:
    """Return the channels of what a stage computes from so many; its mode and values stay."""
    training = stage.training
    weight = next(stage.parameters())
    x = torch.zeros(1, channels, 1, 1, dtype=weight.dtype, device=weight.device)
    after: Tensor = stage.eval()(x)
    stage.train(training)
    return after.shape[1]


def _new_head(channels: int, seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    head = nn.Sequential()
    for width in HIDDEN:
        linear = nn.Linear(channels, width, bias=False)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu", generator=generator)
        head.extend([linear, nn.BatchNorm1d(width), nn.ReLU()])
        channels = width
    last = nn.Linear(channels, CLASSES)
    nn.init.normal_(last.weight, 0, 0.01, generator=generator)
    nn.init.zeros_(last.bias)
    head.append(last)
    return head


class Training(NamedTuple):
    """How a classifier is trained: good images per step, and the learning rate of new weights."""

    batch: int
    learning_rate: float


def train_classifier(
    classifier: PatchClassifier,
    series_at: Callable[[int], ThreeWay],
    fit: Fit,
    phase: Phase,
    training: Training,
    others: Mapping[str, Stateful],
) -> int:
    """Train until `fit.steps` or the deadline; return the steps done.

    series_at: returns the images to classify in a step. others: belong to a snapshot, besides stage
    and head; the backbone is saved with the method that it belongs to.
    """
    groups = []
    rates = {"pretrained": PRETRAINED_RATE * training.learning_rate, "new": training.learning_rate}
    for name, parameters in classifier.trained().items():
        groups.append({"params": parameters, "lr": rates[name], "initial": rates[name]})
    optimiser = torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    parts = {"stage": classifier.stage, "head": classifier.head, **others}
    steps = Steps(fit, phase, [optimiser], fit.steps, parts)
    device = next(classifier.parameters()).device

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(steps.start, fit.steps):
            draws = range(step * training.batch, (step + 1) * training.batch)
            classifier.eval()  # a series may read the classifier
            images, labels = series_at(step).labelled(draws)
            classifier.train()
            yield torch.from_numpy(np.stack(images)), torch.tensor(labels)

    def loss_of(step: int, batch: tuple[Tensor, Tensor]) -> Tensor:
        set_rates(optimiser, step / fit.steps)
        images, labels = batch
        with half_precision(device):
            logits = classifier(images.to(device))
        return F.cross_entropy(logits.float(), labels.to(device))

    done = steps.run(batches(), loss_of)
    classifier.eval()
    classifier.requires_grad_(False)
    return done
