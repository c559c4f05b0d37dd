"""EfficientNet-B5 up to its last level with stride 32, with torchvision's names.

Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural networks" (2019). The
CS-Flow paper reads its block 35, the last block with 304 channels; the three blocks after it and
the classifier are left out. The ImageNet weights are torchvision's file, which was converted from
TensorFlow by L. Melas-Kyriazi (Apache-2.0); torchvision is BSD-3-Clause. Like torchvision, and
unlike TensorFlow and the code of the CS-Flow paper, this network pads strided convolutions equally
on both sides.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.train.backbones.base import Backbone
from flawline.train.backbones.facts import BackboneFacts, Level
from flawline.train.backbones.torchvision_files import (
    download,
    initialise,
    load_checked,
    read_tensors,
)

FILE = "efficientnet_b5_lukemelas-1a07897c.pth"
# A tensor that every file of this network has, and the number of its parts that are built.
FIRST = "features.0.0.weight"
PARTS = 7
# Of the BatchNorms.
EPSILON = 1e-3
MOMENTUM = 0.01
STEM = 48
# Of each stage: kernel, stride, expansion, channels, blocks.
STAGES = (
    (3, 1, 1, 24, 3),
    (3, 2, 6, 40, 5),
    (5, 2, 6, 64, 5),
    (3, 2, 6, 128, 7),
    (5, 1, 6, 176, 7),
    (5, 2, 6, 304, 9),
)
# Of the last BatchNorm of a residual, in random weights.
RESIDUAL_WEIGHT = 0.3
# The numbers are those of a ResNet's levels with the same stride.
LEVELS = {4: Level(304, 32)}


class _SqueezeExcitation(nn.Module):
    """Multiplies each channel by a factor from 0 to 1 that depends on the means of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.fc2(hidden))


def _layer(
    c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, activated: bool = True
) -> nn.Sequential:
    """Build a convolution without bias, its BatchNorm and, if wanted, a SiLU."""
    padding = kernel // 2
    layer = nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(c_out, EPSILON, MOMENTUM),
    )
    if activated:
        layer.append(nn.SiLU())
    return layer


class _Block(nn.Module):
    """An inverted residual with squeeze and excitation; its projection has no activation."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = c_in * expansion
        self.residual = stride == 1 and c_in == c_out
        self.block = nn.Sequential()
        if expansion > 1:
            self.block.append(_layer(c_in, inner, 1))
        self.block.append(_layer(inner, inner, kernel, stride, groups=inner))
        self.block.append(_SqueezeExcitation(inner, max(1, c_in // 4)))
        self.block.append(_layer(inner, c_out, 1, activated=False))

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The BatchNorm of the projection."""
        norm = self.block.get_submodule(f"{len(self.block) - 1}.1")
        assert isinstance(norm, nn.BatchNorm2d)
        return norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return x + y if self.residual else y


class EfficientNetB5(Backbone):
    """EfficientNet-B5 up to block 35; its one level has one position per 32 pixels."""

    def __init__(self, name: str, levels: tuple[int, ...] = tuple(LEVELS)) -> None:
        super().__init__(name, levels)
        self.features = nn.Sequential(_layer(3, STEM, 3, 2))
        channels = STEM
        for kernel, stride, expansion, width, count in STAGES:
            stage = nn.Sequential()
            for number in range(count):
                step = stride if number == 0 else 1
                stage.append(_Block(channels, width, kernel, step, expansion))
                channels = width
            self.features.append(stage)

    @classmethod
    def facts(cls, name: str) -> BackboneFacts:
        return BackboneFacts(LEVELS, light=False)

    @property
    def first_convolution(self) -> nn.Conv2d:
        conv = self.features.get_submodule("0.0")
        assert isinstance(conv, nn.Conv2d)
        return conv

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.features(x),)

    def _initialise(self, seed: int) -> None:
        initialise(self, seed)
        for module in self.modules():
            if isinstance(module, _Block) and module.residual:
                # The values of a stage would grow with every residual that is added to them.
                nn.init.constant_(module.last_norm.weight, RESIDUAL_WEIGHT)

    def _load_imagenet(self) -> str:
        return f"IMAGENET1K_V1 {self._load_file(download(FILE, self.name))}"

    def _load_file(self, path: Path) -> str:
        """Load a state_dict of torchvision's EfficientNet-B5; return the file's hash.

        What follows block 35 in it is ignored.
        """
        data, state = read_tensors(path, self.name, FIRST)
        used = {}
        for name, value in state.items():
            part, number, *_ = (*name.split("."), "")
            if part == "features" and int(number) < PARTS:
                used[name] = value
        load_checked(self, used, path, self.name)
        return f"sha256:{hashlib.sha256(data).hexdigest()[:16]}"
