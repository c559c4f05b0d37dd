"""EfficientNet-Lite0 as a classifier: the backbone with its head."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.train.backbones.efficientnet_lite import (
    AFTER_BLOCKS,
    EPSILON,
    FIRST,
    LAST_BLOCK,
    STAGES,
    Blocks,
    published_file,
    state_of_blocks,
)
from flawline.train.saliency.base import SaliencyNetwork

HEAD = 1280
CLASSES = 1000
# The last block on each of the five grids.
LEVEL_BLOCKS = (0, 2, 4, 10, 15)


class Lite0(SaliencyNetwork):
    """EfficientNet-Lite0; its levels are the last blocks on each of the five grids."""

    strides: ClassVar[tuple[int, ...]] = (2, 4, 8, 16, 32)
    title: ClassVar[str] = "EfficientNet-Lite0 (not the paper's VGG16)"
    first_weight: ClassVar[str] = FIRST

    def __init__(self) -> None:
        super().__init__()
        self.network = Blocks(LAST_BLOCK)
        self.conv_head = nn.Conv2d(STAGES[-1][3], HEAD, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(HEAD, EPSILON)
        self.fc = nn.Linear(HEAD, CLASSES)

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        outputs = self.network((image.permute(0, 3, 1, 2).flip(1) - 127) / 128)
        levels = [outputs[number] for number in LEVEL_BLOCKS]
        pooled = F.relu6(self.bn1(self.conv_head(outputs[-1]))).mean((2, 3))
        logits: Tensor = self.fc(pooled)
        return levels, logits

    @classmethod
    def renamed(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {}
        for name, value in state_of_blocks(state, LAST_BLOCK).items():
            names[f"network.{name}"] = value
        for name, value in state.items():
            if name.startswith(AFTER_BLOCKS):
                names[name.removeprefix("_")] = torch.as_tensor(value)
        return names

    @classmethod
    def default_file(cls) -> Path:
        return published_file("saliency lite0")
