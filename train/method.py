"""The interface of a detector, how it is fitted, and its settings."""

from __future__ import annotations

import abc
import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import Field, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from flawline.registry import resolve
from flawline.runtime.image import Geometry, Image
from flawline.runtime.manifest import GRAPH_OUTPUTS
from flawline.train import METHODS, TrainError
from flawline.train.anomalies import SyntheticAnomalies
from flawline.train.backbones import DEFAULT_BACKBONE, backbone_facts
from flawline.train.backbones.base import Backbone
from flawline.train.backbones.facts import RANDOM
from flawline.train.fitting import Fit, Phase

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Fit",
    "Method",
    "MethodSettings",
    "Phase",
    "Teachable",
    "flag_fields",
    "require_multiple",
    "require_positive",
    "resolve_method",
]


@dataclass(frozen=True)
class MethodSettings:
    """The settings that every method has; each method adds its own fields with `option`.

    A field declared as `option(default, help, flag=True)` is a command-line flag of the method: the
    annotation gives its type. Wrong values raise TrainError in `__post_init__`.

    backbone: a name in BACKBONES, or "" in a method without one. A method with several names its
        first here, and declares fields for the others.
    geometry: how images become the input.
    """

    backbone: str
    geometry: Geometry

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input and of the map, in pixels."""
        return self.geometry.height, self.geometry.width

    @property
    def default_geometry(self) -> Geometry:
        """How images become the input where nothing else is asked for; by default `geometry`.

        A class whose other fields change the default returns that of its fields.
        """
        return self.geometry


def require_positive(flag: str, value: float | None) -> None:
    """Raise TrainError for the value of a flag that is not finite and above 0; None is allowed."""
    if value is None:
        return
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise TrainError(f"--{flag} {text} is not a finite number; give one above 0")
    if value <= 0:
        raise TrainError(f"--{flag} {text} is not above 0")


@dataclass(frozen=True)
class Teachable:
    """Where the exported form of a method has what a teacher on a box replaces.

    features: the path of the module that reads the features [N, d, ...], and whatever it compares
        them with.
    distances: the path of the module that gives a distance for each position, [N, ...].
    settings: of the method, by name, as far as what is learned depends on them: JSON values.
    """

    features: str
    distances: str
    settings: dict[str, Any]


def flag_fields(settings: type[MethodSettings], marker: str = "flag") -> list[Field[Any]]:
    """Return the fields of a settings class that are command-line flags.

    `marker` is the keyword by which `option` declares them: `flag` for all flags of the method, and
    `anomaly_flag` for those that change its synthetic anomalies.
    """
    return [field for field in dataclasses.fields(settings) if field.metadata.get(marker)]


class Method(nn.Module, abc.ABC):
    """A detector: a module with one signature that is fitted on good images.

    `forward` maps uint8 BGR [N, H, W, 3] to score float32 [N] and map float32 [N, H, W], evaluated
    literally as in the paper's code. `fused` returns the module that is exported: the same
    function, rewritten. `__init__` takes the settings alone.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[MethodSettings]]
    tuned_on: ClassVar[tuple[str, ...]]  # names in TUNING_SETS, whose results chose the settings
    # Tolerance of an exported graph's maps, as a multiple of the tolerance of its scores.
    map_tolerance: ClassVar[float] = 1.0
    # GRAPH_OUTPUTS, or ("score",) for a method that judges images as a whole: its `forward` and
    # its exported form return `no_map`, and its bundles are built for the score alone.
    outputs: ClassVar[tuple[str, ...]] = GRAPH_OUTPUTS
    default_backbone: ClassVar[str] = DEFAULT_BACKBONE
    # The phases of the training in order, in a method with several. A training that was cut short
    # before the last one began is never exported, not even on request.
    phases: ClassVar[tuple[str, ...]] = ()
    # Smallest height and width of the input, in pixels.
    smallest_size: ClassVar[int] = 32
    # Whether `fit` reads pixels in every step, not features that it computes once. Training then
    # prepares each image once, for a cache on disk, unless `images_used` is fewer than all.
    trains_on_pixels: ClassVar[bool] = False
    # Kinds of `flawline.train.anomalies.kinds.KINDS` that are like the synthetic anomalies that
    # `fit` trains against. Detectors are not compared on a kind that one of them was trained with.
    trains_against: ClassVar[tuple[str, ...]] = ()

    settings: MethodSettings

    def __init__(self, settings: MethodSettings) -> None:
        super().__init__()
        self._check_size(settings)
        self.settings = settings

    @classmethod
    def _check_size(cls, settings: MethodSettings) -> None:
        """Raise TrainError unless the method and its backbone take images of this size."""
        name = settings.backbone
        side = min(settings.size)
        if side < cls.smallest_size:
            raise TrainError(f"--size {side} is below {cls.smallest_size}; use a larger one")
        size = backbone_facts(name).fixed_size if name else None
        if size is not None and settings.size != (size, size):
            fits = cls.settings_for(name).size == (size, size)
            remedy = "leave --size out" if fits else f"{cls.name} needs another --backbone"
            raise TrainError(f"{name} takes images of {size} x {size} only; {remedy}")

    @property
    def geometry(self) -> Geometry:
        """How images become the input."""
        return self.settings.geometry

    @property
    def device(self) -> torch.device:
        """The device of the parameters and buffers."""
        for tensor in itertools.chain(self.parameters(), self.buffers()):
            return tensor.device
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The type of the floating-point parameters and buffers."""
        for tensor in itertools.chain(self.parameters(), self.buffers()):
            if tensor.is_floating_point():
                return tensor.dtype
        return torch.get_default_dtype()

    def backbones(self) -> dict[str, Backbone]:
        """Return the pretrained parts of the method by name; a method may have none or several.

        They are never trained and stay in eval mode. The default is the attribute `backbone`.
        """
        backbone = dict(self.named_children()).get("backbone")
        if isinstance(backbone, Backbone):
            return {"backbone": backbone}
        return {}

    def train(self, mode: bool = True) -> Self:
        """Set training or eval mode of everything but the backbones, which stay frozen."""
        super().train(mode)
        for backbone in self.backbones().values():
            backbone.requires_grad_(False)
            backbone.eval()
        return self

    @classmethod
    @abc.abstractmethod
    def settings_for(cls, backbone: str) -> MethodSettings:
        """Return the default settings that suit a backbone."""

    @classmethod
    def complete_settings(cls, settings: Any, data: Path) -> Any:
        """Fill in settings that depend on the data set in the folder `data`."""
        return settings

    @classmethod
    def steps(cls, settings: Any, images: int, epochs: int | None) -> int | None:
        """Return how many optimiser steps `epochs` passes over so many images take.

        With None for `epochs`, return the steps of the default length. A method with a closed form,
        which takes no steps, returns None; this is the default.
        """
        return None

    @classmethod
    def images_used(cls, settings: Any, available: int) -> int:
        """Return how many of the available good images `fit` trains on."""
        return available

    @classmethod
    def settings_to_time(cls, settings: Any, images: int, available: int) -> Any:
        """Return settings with which a fit on fewer images gives a graph as large as on all.

        images: the number of good images that it is fitted on. available: the number of all. The
        default returns `settings`, for methods whose graph has one size.
        """
        return settings

    @classmethod
    def anomalies(
        cls, settings: Any, images: Sequence[Image], seed: int
    ) -> SyntheticAnomalies | None:
        """Return the synthetic anomalies, made of these good images, that `fit` uses; None if none.

        images: uint8 [H, W, 3] each.
        """
        return None

    def load_weights(self, weights: str, seed: int, images: Sequence[Image]) -> str:
        """Load pretrained weights into all backbones and return a short description of them.

        weights: as in `Backbone.load`. seed: of random weights, whose BatchNorm statistics are
        estimated on good images, uint8 [H, W, 3] each. Raises TrainError.
        """
        descriptions = []
        for backbone in self.backbones().values():
            description = backbone.load(weights, seed)
            if weights == RANDOM:
                backbone.estimate_batchnorm(images)
            if description not in descriptions:
                descriptions.append(description)
        return "; ".join(descriptions) or "none"

    def start_like(self, other: Self) -> None:
        """Take the pretrained weights of another detector, instead of `load_weights`."""
        for name, backbone in self.backbones().items():
            backbone.load_state_dict(other.backbones()[name].state_dict())

    @abc.abstractmethod
    def fit(self, fit: Fit) -> int:
        """Train and return the number of steps done, which is `fit.steps` unless time ran out.

        Raises TrainError where the settings do not fit the images.
        """

    @abc.abstractmethod
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute score [N] and map [N, H, W] of images, uint8 [N, H, W, 3].

        The map is [N, 0, 0] in a method without map.
        """

    def teaching(self) -> Teachable | None:
        """Return what teaching on a box must know of the exported form; None if that cannot be.

        A method that returns it is listed in `flawline.runtime.teaching.TEACHERS`. The default is
        None.
        """
        return None

    @abc.abstractmethod
    def fused(self) -> nn.Module:
        """Return the module that is exported, in eval mode. Raises TrainError before `fit`."""


def require_multiple(size: tuple[int, int], unit: int, method: str) -> None:
    """Raise TrainError unless height and width of an input are multiples of so many pixels."""
    for side in size:
        if side % unit:
            nearest = max(1, round(side / unit)) * unit
            raise TrainError(
                f"--size {side} is not a multiple of {unit}, which {method} needs; "
                f"use --size {nearest}"
            )


def resolve_method(name: str) -> type[Method]:
    """Return the class of a method. Raises TrainError for an unknown name."""
    kind: type[Method] = resolve(METHODS, name, "method", TrainError)
    return kind
