"""A backbone applied to an image at several scales."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from flawline.train import TrainError
from flawline.train.backbones import backbone_facts, create_backbone, require_levels
from flawline.train.backbones.base import Backbone
from flawline.train.backbones.facts import BackboneFacts


class ImagePyramid(Backbone):
    """The level maps of an image and of reduced copies of it, all from one network.

    An image is reduced by taking every `step`-th row and column, which is torch's nearest resize
    where the step divides height and width, as it must. The maps of all levels of the first scale
    come first, then those of the second one; `channels` and `strides` are in this order too.

    steps: of each scale, in pixels; the first one is usually 1.
    Raises TrainError for a backbone without one of the levels, and for one with a fixed size.
    """

    def __init__(self, name: str, levels: tuple[int, ...], steps: Sequence[int]) -> None:
        require_levels(name, levels)
        if backbone_facts(name).fixed_size is not None:
            raise TrainError(
                f"{name} takes images of one size only, and this method reads several sizes; "
                "choose a residual network"
            )
        super().__init__(name, levels)
        self.network = create_backbone(name, levels)
        self.steps = tuple(steps)
        self.channels = self.network.channels * len(self.steps)
        strides = []
        for step in self.steps:
            for stride in self.network.strides:
                strides.append(step * stride)
        self.strides = tuple(strides)

    @classmethod
    def facts(cls, name: str) -> BackboneFacts:
        return backbone_facts(name)

    @property
    def first_convolution(self) -> nn.Conv2d:
        return self.network.first_convolution

    def grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        found: list[tuple[int, int]] = []
        for step in self.steps:
            found += self.network.grids(height // step, width // step)
        return tuple(found)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps: list[Tensor] = []
        for step in self.steps:
            maps += self.network(x if step == 1 else x[:, :, ::step, ::step])
        return tuple(maps)

    def load(self, weights: str, seed: int = 0) -> str:
        return self.network.load(weights, seed)

    def _initialise(self, seed: int) -> None:
        self.network._initialise(seed)
