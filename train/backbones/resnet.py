"""The ResNet family from the first convolution to layer3 or layer4, with torchvision's names.

Anomaly detectors read layer2 and layer3, some also layer1 or layer4. layer4 would be 20 to 60 % of
the arithmetic and is built only for a method that reads it; the classifier is left out. A
state_dict of torchvision loads as it is. He et al., "Deep residual learning" (2016); Zagoruyko and
Komodakis, "Wide residual networks" (2016).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flawline.train import TrainError
from flawline.train.backbones.base import Backbone
from flawline.train.backbones.facts import IMAGENET, RANDOM, TEXTURE, BackboneFacts, Level
from flawline.train.backbones.torchvision_files import (
    download,
    initialise,
    load_checked,
    read_tensors,
)

STRIDES = {1: 4, 2: 8, 3: 16, 4: 32}
# The level that few methods read, and the beginning of the names of its weights.
LAST_LEVEL = 4
STAGE_AFTER = "layer4."
# The part of torchvision's networks that this module never builds.
CLASSIFIER = "fc."
# A tensor that every file of these networks has.
FIRST = "conv1.weight"


@dataclass(frozen=True)
class Architecture:
    """Shape of a network, and the name of torchvision's IMAGENET1K_V1 weight file.

    blocks: blocks of layer1 to layer4. width: factor of the inner channels of a bottleneck.
    """

    bottleneck: bool
    blocks: tuple[int, int, int, int]
    width: int
    file: str

    @property
    def expansion(self) -> int:
        """Output channels of a block per plane."""
        return 4 if self.bottleneck else 1


ARCHITECTURES = {
    "resnet18": Architecture(False, (2, 2, 2, 2), 1, "resnet18-f37072fd.pth"),
    "resnet34": Architecture(False, (3, 4, 6, 3), 1, "resnet34-b627a593.pth"),
    "resnet50": Architecture(True, (3, 4, 6, 3), 1, "resnet50-0676ba61.pth"),
    "resnet101": Architecture(True, (3, 4, 23, 3), 1, "resnet101-63fe2227.pth"),
    "wide_resnet50_2": Architecture(True, (3, 4, 6, 3), 2, "wide_resnet50_2-95faca4d.pth"),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, of ResNet18 and ResNet34."""

    def __init__(self, channels_in: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1: nn.Module = nn.Conv2d(channels_in, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(channels_in, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.downsample is not None:
            x = self.downsample(x)
        return torch.relu(y + x)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution and a shortcut; `width` multiplies the inner channels."""

    def __init__(self, channels_in: int, planes: int, stride: int, width: int) -> None:
        super().__init__()
        inner = planes * width
        self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2: nn.Module = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample = _shortcut(channels_in, 4 * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            x = self.downsample(x)
        return torch.relu(y + x)


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    conv = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


def residual_stage(name: str, number: int, channels: int | None = None) -> nn.Sequential:
    """Build layer`number` of a network, 1 to 4.

    A backbone has layer4 only if it returns that level; methods build it that train with it, and
    benchmarks that run what the papers' code runs. channels: of its input; None for those of the
    stage before it.
    """
    shape = ARCHITECTURES[name]
    planes = 32 * 2**number
    if channels is None:
        channels = 64 if number == 1 else planes // 2 * shape.expansion
    stage = nn.Sequential()
    for index in range(shape.blocks[number - 1]):
        stride = 2 if index == 0 and number > 1 else 1
        block: nn.Module
        if shape.bottleneck:
            block = Bottleneck(channels, planes, stride, shape.width)
        else:
            block = BasicBlock(channels, planes, stride)
        stage.append(block)
        channels = planes * shape.expansion
    return stage


class ResNet(Backbone):
    """A ResNet; its levels 1 to 4 are layer1 to layer4, and layer4 is built only if returned."""

    def __init__(self, name: str, levels: tuple[int, ...] = (2, 3)) -> None:
        super().__init__(name, levels)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = residual_stage(name, 1)
        self.layer2 = residual_stage(name, 2)
        self.layer3 = residual_stage(name, 3)
        self.layer4: nn.Module | None = None
        if LAST_LEVEL in levels:
            self.layer4 = residual_stage(name, LAST_LEVEL)

    @classmethod
    def facts(cls, name: str) -> BackboneFacts:
        expansion = ARCHITECTURES[name].expansion
        levels = {}
        for number, stride in STRIDES.items():
            levels[number] = Level(32 * 2**number * expansion, stride)
        return BackboneFacts(levels, light=expansion == 1)

    @property
    def first_convolution(self) -> nn.Conv2d:
        return self.conv1

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        level1 = self.layer1(x)
        level2 = self.layer2(level1)
        level3 = self.layer3(level2)
        maps = {1: level1, 2: level2, 3: level3}
        if self.layer4 is not None:
            maps[LAST_LEVEL] = self.layer4(level3)
        return tuple(maps[level] for level in self.levels)

    def stages_from(self, level: int) -> list[nn.Module]:
        stages = {1: self.layer1, 2: self.layer2, 3: self.layer3}
        return [stage for number, stage in stages.items() if number >= level]

    def stage_after(self, weights: str, seed: int) -> tuple[nn.Module, bool]:
        stage = residual_stage(self.name, 4)
        initialise(stage, seed)
        path = self._weight_file(weights)
        if path is None:
            return stage, False
        state = {}
        for name, value in read_tensors(path, self.name, FIRST)[1].items():
            if name.startswith(STAGE_AFTER):
                state[name.removeprefix(STAGE_AFTER)] = value
        if state:
            load_checked(stage, state, path, f"{STAGE_AFTER[:-1]} of {self.name}")
        return stage, bool(state)

    def _weight_file(self, weights: str) -> Path | None:
        """Return the file of weights as in `load`; None for random ones."""
        if weights == RANDOM:
            return None
        if weights == TEXTURE:
            return self._texture_file()
        if weights == IMAGENET:
            return download(ARCHITECTURES[self.name].file, self.name)
        return Path(weights)

    def _initialise(self, seed: int) -> None:
        initialise(self, seed)

    def _load_imagenet(self) -> str:
        path = download(ARCHITECTURES[self.name].file, self.name)
        return f"IMAGENET1K_V1 {self._load_file(path)}"

    def _load_file(self, path: Path) -> str:
        """Load a state_dict of torchvision for the same architecture; return the file's hash.

        The classifier in it is ignored, and layer4 unless it is returned. It may also have folded
        BatchNorm with the same names: statistics of the identity, and the bias in bn.bias.
        """
        data, state = read_tensors(path, self.name, FIRST)
        unused: tuple[str, ...] = (CLASSIFIER,)
        if self.layer4 is None:
            unused = (CLASSIFIER, STAGE_AFTER)
        elif not any(name.startswith(STAGE_AFTER) for name in state):
            raise TrainError(
                f"weights {path}: end at layer3, and this method reads layer4 of {self.name}; use "
                "a file that has it"
            )
        used = {}
        for name, value in state.items():
            if not name.startswith(unused):
                used[name] = value
        load_checked(self, used, path, self.name)
        return f"sha256:{hashlib.sha256(data).hexdigest()[:16]}"
