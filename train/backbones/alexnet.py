"""AlexNet's convolutions, the backbone of the DifferNet paper, with torchvision's names.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (2014), which
torchvision's network follows. The classifier is left out.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor, nn

from flawline.train.backbones.base import Backbone
from flawline.train.backbones.facts import BackboneFacts, Level
from flawline.train.backbones.torchvision_files import (
    download,
    initialise,
    load_checked,
    read_tensors,
)

FILE = "alexnet-owt-7be5be79.pth"
# Of the part of torchvision's network that this module does not build.
UNUSED_PREFIX = "classifier."
# Its one level is coarser than layer3 of a ResNet, whose number it has.
LEVEL = 3
CHANNELS = 256
STRIDE = 32
# Kernel, stride and padding of the layers that reduce the image, in their order.
REDUCTIONS = ((11, 4, 2), (3, 2, 0), (3, 2, 0), (3, 2, 0))


class AlexNet(Backbone):
    """AlexNet up to its last pooling; the one level has one position per 32 pixels.

    An input has at least 63 pixels per side.
    """

    def __init__(self, name: str, levels: tuple[int, ...] = (LEVEL,)) -> None:
        super().__init__(name, levels)
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )

    @classmethod
    def facts(cls, name: str) -> BackboneFacts:
        return BackboneFacts({LEVEL: Level(CHANNELS, STRIDE)}, light=False)

    @property
    def first_convolution(self) -> nn.Conv2d:
        conv = self.features[0]
        assert isinstance(conv, nn.Conv2d)
        return conv

    def grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        return ((_positions(height), _positions(width)),)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.features(x),)

    def _initialise(self, seed: int) -> None:
        initialise(self, seed)

    def _load_imagenet(self) -> str:
        return f"IMAGENET1K_V1 {self._load_file(download(FILE, self.name))}"

    def _load_file(self, path: Path) -> str:
        """Load a state_dict of torchvision's AlexNet; return the file's hash."""
        data, state = read_tensors(path, self.name, "features.0.weight")
        used = {}
        for name, value in state.items():
            if not name.startswith(UNUSED_PREFIX):
                used[name] = value
        load_checked(self, used, path, self.name)
        return f"sha256:{hashlib.sha256(data).hexdigest()[:16]}"


def _positions(side: int) -> int:
    """Return how many positions per side the level has for so many pixels."""
    for kernel, stride, padding in REDUCTIONS:
        side = (side + 2 * padding - kernel) // stride + 1
    return side
