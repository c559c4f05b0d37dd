"""The smallest backbone: four strided convolutions with random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flawline.train.backbones.base import Backbone
from flawline.train.backbones.facts import BackboneFacts, Level


class StridedConvolutions(Backbone):
    """Levels 1 to 3 with 8, 16 and 32 channels at strides 4, 8 and 16."""

    def __init__(self, name: str, levels: tuple[int, ...]) -> None:
        super().__init__(name, levels)
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.stages = nn.ModuleList()
        channels = 4
        for level in self.facts(name).levels.values():
            self.stages.append(nn.Conv2d(channels, level.channels, 3, 2, 1))
            channels = level.channels

    @classmethod
    def facts(cls, name: str) -> BackboneFacts:
        return BackboneFacts({1: Level(8, 4), 2: Level(16, 8), 3: Level(32, 16)}, light=True)

    @property
    def first_convolution(self) -> nn.Conv2d:
        return self.stem

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = torch.relu(self.stem(x))
        maps = {}
        for level, stage in enumerate(self.stages, 1):
            x = torch.relu(stage(x))
            maps[level] = x
        return tuple(maps[level] for level in self.levels)

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.3, 0.3, generator=generator)
