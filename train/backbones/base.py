"""The interface that every backbone implements."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from flawline.runtime.image import Image
from flawline.suggestions import did_you_mean
from flawline.train import TrainError
from flawline.train.backbones.facts import (
    IMAGENET,
    PRETRAINED_LEVELS,
    RANDOM,
    TEXTURE,
    BackboneFacts,
)
from flawline.train.backbones.memory import FeatureMemory

# Largest batch and number of images with which random weights get their BatchNorm statistics.
STATISTICS_BATCH = 8
STATISTICS_IMAGES = 32
# The files BACKBONE-texture.pth that train.pretrain made from formulas.
TEXTURE_FOLDER = Path(__file__).parent / "weights"
TEXTURE_SUFFIX = "-texture.pth"
REMEDY = "take another --backbone"


class Backbone(nn.Module, abc.ABC):
    """A feature extractor: normalised RGB [N, 3, H, W] to one map [N, C, h, w] per level.

    name: its name in BACKBONES.
    levels: the numbers of the levels that it returns, in their order.
    channels, strides: channels and input pixels per position of each returned level.
    """

    # ImageNet statistics of RGB in 0..1, with which published weight files were trained.
    mean_rgb: ClassVar[tuple[float, float, float]] = (0.485, 0.456, 0.406)
    std_rgb: ClassVar[tuple[float, float, float]] = (0.229, 0.224, 0.225)
    # Set where several trainings read the same images. The weights must not change after that.
    memory: FeatureMemory | None = None

    def __init__(self, name: str, levels: tuple[int, ...]) -> None:
        super().__init__()
        facts = self.facts(name)
        self.name = name
        self.levels = levels
        self.channels = tuple(facts.levels[level].channels for level in levels)
        self.strides = tuple(facts.levels[level].stride for level in levels)

    @classmethod
    @abc.abstractmethod
    def facts(cls, name: str) -> BackboneFacts:
        """Return what is known of the backbone `name` without building it."""

    @classmethod
    def missing(cls) -> str | None:
        """Return what this machine lacks to build backbones of this class, or None for nothing."""
        return None

    @property
    @abc.abstractmethod
    def first_convolution(self) -> nn.Conv2d:
        """The convolution that reads the image."""

    @abc.abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of `levels` from normalised RGB."""

    def load(self, weights: str, seed: int = 0) -> str:
        """Load weights and return a short description with their hash.

        `weights` is one of WEIGHT_KINDS, that is `imagenet` (downloaded), `texture` (in this
        package) or `random` (drawn by the seed), or the path of a file. Raises TrainError.
        """
        if weights == RANDOM:
            self._initialise(seed)
            return f"{RANDOM}, seed {seed}"
        if weights == TEXTURE:
            return f"{TEXTURE} {self._load_file(self._texture_file())}"
        if weights == IMAGENET:
            return f"{IMAGENET} {self._load_imagenet()}"
        path = Path(weights)
        return f"{path.name} {self._load_file(path)}"

    @abc.abstractmethod
    def _initialise(self, seed: int) -> None:
        """Draw random weights from a generator with this seed."""

    def _load_imagenet(self) -> str:
        """Download and load weights trained on ImageNet; return their version and their hash.

        This implementation raises TrainError, for a backbone without such weights.
        """
        raise self._no_weights(IMAGENET)

    def _load_file(self, path: Path) -> str:
        """Load a weight file and return its hash. Raises TrainError for another file.

        This implementation raises TrainError, for a backbone without weight files.
        """
        raise self._no_weights(str(path))

    def stages_from(self, level: int) -> list[nn.Module]:
        """Return the modules from a level's own stage on, for a method that trains a copy of them.

        This implementation raises TrainError, for a backbone that is never trained further.
        """
        raise TrainError(f"backbone {self.name}: is not trained further by any method; {REMEDY}")

    def stage_after(self, weights: str, seed: int) -> tuple[nn.Module, bool]:
        """Build the stage after the last level, and say whether `weights` contained it.

        Only the training of some methods needs it. Its weights are those of the file that `load`
        takes, or random ones where the file ends before that stage. Raises TrainError, as this
        implementation does for a backbone without such a stage.
        """
        raise TrainError(f"backbone {self.name}: has no further stage; {REMEDY}")

    def _no_weights(self, weights: str) -> TrainError:
        return TrainError(f"weights {weights}: {self.name} has none; use --weights {RANDOM}")

    def _texture_file(self) -> Path:
        """Return the path of the weights in this package. Raises TrainError if there are none."""
        path = TEXTURE_FOLDER / f"{self.name}{TEXTURE_SUFFIX}"
        if path.exists():
            return path
        existing = ", ".join(_with_texture_weights())
        problem = f"weights {TEXTURE}: there are none of {self.name}"
        if not set(PRETRAINED_LEVELS) <= set(self.facts(self.name).levels):
            raise TrainError(f"{problem}; choose --backbone {existing}")
        raise TrainError(
            f"{problem}, only of {existing}; choose that --backbone, or train them with "
            f"python -m flawline.train.pretrain --backbone {self.name} and pass the file with "
            f"--weights"
        )

    def grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Return the height and width of each returned level for an input of this size."""
        sizes = []
        for stride in self.strides:
            sizes.append((-(-height // stride), -(-width // stride)))
        return tuple(sizes)

    def normalise(self, image: Tensor) -> Tensor:
        """Convert uint8 BGR [N, H, W, 3] to normalised RGB [N, 3, H, W] in the network's dtype."""
        like = self.first_convolution.weight
        mean = like.new_tensor(self.mean_rgb).view(3, 1, 1)
        std = like.new_tensor(self.std_rgb).view(3, 1, 1)
        rgb = image.permute(0, 3, 1, 2).flip(1).to(like.dtype)
        return (rgb / 255 - mean) / std

    def extract(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of `levels` from uint8 BGR [N, H, W, 3].

        With a `memory`, those of a single image are computed once.
        """
        if self.memory is None:
            return self._levels_of(image)
        return self.memory.get(image, lambda: self._levels_of(image))

    def _levels_of(self, image: Tensor) -> tuple[Tensor, ...]:
        levels: tuple[Tensor, ...] = self(self.normalise(image))
        return levels

    @torch.no_grad()
    def estimate_batchnorm(self, images: Sequence[Image]) -> None:
        """Estimate the BatchNorm statistics of random weights on good images, uint8 [H, W, 3] each.

        With the initial statistics, activations of random weights would grow from block to block.
        Does nothing in a network without BatchNorm.
        """
        norms = []
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                norms.append(module)
        if not norms:
            return
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over the batches
        self.train()
        count = min(STATISTICS_IMAGES, len(images))
        chosen = np.linspace(0, len(images) - 1, count).astype(int)
        # Batches of about the same size: a last one of a single image would have no statistics
        # where a level has a single position, and elsewhere it would count as much as the others.
        batches = math.ceil(count / STATISTICS_BATCH)
        for first in range(batches):
            batch = []
            for index in chosen[first::batches].tolist():
                batch.append(np.asarray(images[index]))
            self.extract(torch.from_numpy(np.stack(batch)).to(self.first_convolution.weight.device))
        self.eval()


def unreadable(path: Path, error: OSError) -> TrainError:
    """Return the error for a weight file that cannot be read: its path, or a mistyped name."""
    names = (IMAGENET, TEXTURE, RANDOM)
    return TrainError(
        f"weights {path}: cannot be read ({error.strerror or error})"
        f"{did_you_mean(str(path), names)}; check the path, or choose one of {', '.join(names)}"
    )


def flags_without_download(name: str) -> str:
    """Return the flags of a training that needs no download, if possible of this backbone."""
    existing = _with_texture_weights()
    if name in existing:
        return f"--weights {TEXTURE}"
    return f"--backbone {existing[0]} --weights {TEXTURE}"


def _with_texture_weights() -> list[str]:
    """Return the names of the backbones whose texture weights are in this package."""
    names = []
    for file in sorted(TEXTURE_FOLDER.glob(f"*{TEXTURE_SUFFIX}")):
        names.append(file.name.removesuffix(TEXTURE_SUFFIX))
    return names
