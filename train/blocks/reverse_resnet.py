"""The networks that reverse a residual network: an embedding of its levels, and a decoder.

Deng and Li, "Anomaly detection via reverse distillation from one-class embedding", CVPR 2022, with
the shapes of the authors' code (hq-deng/RD4AD).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flawline.train import TrainError
from flawline.train.backbones.resnet import (
    ARCHITECTURES,
    Architecture,
    BasicBlock,
    Bottleneck,
    residual_stage,
)

# Output planes of the stages of the decoder, the coarsest first.
DECODER_PLANES = (256, 128, 64)


def architecture_of(name: str) -> Architecture:
    """Return the shape of a residual network. Raises TrainError for another backbone."""
    if name not in ARCHITECTURES:
        raise TrainError(
            f"backbone {name}: only residual networks can be reversed; "
            f"known: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


class Embedding(nn.Module):
    """Joins the levels 1, 2 and 3 of a network to one map of an eighth of the first level's grid.

    Strided convolutions bring the first two levels to the grid of the third. The three are joined,
    and a residual stage like the network's layer4 halves the grid once more.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        expansion = architecture_of(name).expansion
        self.fine = nn.Sequential()
        self.fine.add_module("conv1", _halving(64 * expansion, 128 * expansion))
        self.fine.add_module("bn1", nn.BatchNorm2d(128 * expansion))
        self.fine.add_module("relu1", nn.ReLU())
        self.fine.add_module("conv2", _halving(128 * expansion, 256 * expansion))
        self.fine.add_module("bn2", nn.BatchNorm2d(256 * expansion))
        self.fine.add_module("relu2", nn.ReLU())
        self.middle = nn.Sequential()
        self.middle.add_module("conv1", _halving(128 * expansion, 256 * expansion))
        self.middle.add_module("bn1", nn.BatchNorm2d(256 * expansion))
        self.middle.add_module("relu1", nn.ReLU())
        self.stage = residual_stage(name, 4, 3 * 256 * expansion)

    def forward(self, level1: Tensor, level2: Tensor, level3: Tensor) -> Tensor:
        joined = torch.cat([self.fine(level1), self.middle(level2), level3], 1)
        embedded: Tensor = self.stage(joined)
        return embedded


def _halving(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, 2, 1, bias=False)


class Decoder(nn.Module):
    """Computes maps like the levels of a network from its `Embedding`, the finest map first."""

    def __init__(self, name: str) -> None:
        super().__init__()
        shape = architecture_of(name)
        channels = 512 * shape.expansion
        self.stages = nn.ModuleList()
        for planes, blocks in zip(DECODER_PLANES, shape.blocks, strict=False):
            self.stages.append(_decoder_stage(shape, channels, planes, blocks))
            channels = planes * shape.expansion

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.insert(0, x)
        return tuple(maps)


def _decoder_stage(shape: Architecture, channels: int, planes: int, blocks: int) -> nn.Sequential:
    """Build a stage that doubles the grid in its first block."""
    stage = nn.Sequential()
    for index in range(blocks):
        block: nn.Module
        if shape.bottleneck:
            block = Bottleneck(channels, planes, 1, shape.width)
        else:
            block = BasicBlock(channels, planes, 1)
        if index == 0:
            _double_grid(block)
        stage.append(block)
        channels = planes * shape.expansion
    return stage


def _double_grid(block: BasicBlock | Bottleneck) -> None:
    """Let a block double the grid, where a block of the network would halve it."""
    if isinstance(block, Bottleneck):
        block.conv2 = _doubling(block.conv2)
    else:
        block.conv1 = _doubling(block.conv1)
    assert block.downsample is not None
    block.downsample[0] = _doubling(block.downsample[0])


def _doubling(like: nn.Module) -> nn.ConvTranspose2d:
    """Return a transposed convolution of the channels of a convolution."""
    assert isinstance(like, nn.Conv2d)
    return nn.ConvTranspose2d(like.in_channels, like.out_channels, 2, 2, bias=False)
