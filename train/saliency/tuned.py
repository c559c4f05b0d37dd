"""The saliency of a classifier that a training made itself, from a residual network."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from torch import Tensor

from flawline.train.backbones import create_backbone
from flawline.train.blocks.patch_classifier import PatchClassifier
from flawline.train.saliency.base import SaliencyNetwork

LEVELS = (1, 2, 3)


class TunedNetwork(SaliencyNetwork):
    """A copy of a classifier of synthetic anomalies; its levels are the ends of its four stages.

    It needs no weights of another classifier, which makes it a substitute for the paper's network.
    """

    strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)
    title: ClassVar[str] = "the classifier itself after a warm-up with CutPaste (not the paper's)"

    def __init__(self, classifier: PatchClassifier) -> None:
        super().__init__()
        self.backbone = create_backbone(classifier.backbone.name, LEVELS)
        self.backbone.load_state_dict(classifier.backbone.state_dict())
        self.stage = copy.deepcopy(classifier.stage)
        self.head = copy.deepcopy(classifier.head)
        self.to(next(classifier.parameters()).device)
        self.eval().requires_grad_(False)
        self.description = self.title

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        levels = list(self.backbone(self.backbone.normalise(image)))
        levels.append(self.stage(levels[-1]))
        logits: Tensor = self.head(levels[-1].mean((2, 3)))
        return levels, logits


class WarmedUp:
    """The network that a training makes once, which is part of its snapshots."""

    def __init__(self, classifier: PatchClassifier) -> None:
        self.classifier = classifier
        self.network: TunedNetwork | None = None

    def get(self) -> TunedNetwork:
        """Return the network, which the first call copies from the classifier."""
        if self.network is None:
            self.network = TunedNetwork(self.classifier)
        return self.network

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the network; empty before it is made."""
        return {} if self.network is None else self.network.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Make the network of a state, unless it is empty."""
        if state_dict:
            self.get().load_state_dict(state_dict)
