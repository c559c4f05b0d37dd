"""A recipe: everything that decides what is trained, checked once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawline.runtime.image import Geometry
from flawline.train import TrainError
from flawline.train.method import Method, MethodSettings, resolve_method

DEFAULT_WEIGHTS = "imagenet"
LARGEST_SEED = 2**31 - 1
# The published ratio of shorter-crop: the shorter side is scaled to 329 pixels and 288 are cut out.
CROP_RATIO = 329 / 288


@dataclass(frozen=True)
class Recipe:
    """What to train and how long; `plan` fills in the defaults of the method.

    method: a name in METHODS.
    data: the folder of a product, in a layout that train.data knows.
    settings: the settings of the method.
    weights: pretrained weights, as in `Method.load_weights`.
    steps, epochs: the length of the training; both None for the default length of the method.
    max_minutes: when to stop; the same recipe continues from there.
    bit_depth: significant bits of 16-bit images, or None for 8-bit images.
    device: cpu, cuda, cuda:1, or auto.
    Raises TrainError for values out of range.
    """

    method: str
    data: Path
    settings: MethodSettings
    weights: str = DEFAULT_WEIGHTS
    steps: int | None = None
    epochs: int | None = None
    max_minutes: float | None = None
    seed: int = 0
    bit_depth: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        _require_positive("steps", self.steps)
        _require_positive("epochs", self.epochs)
        _require_positive("max-minutes", self.max_minutes)
        if self.steps and self.epochs:
            raise TrainError("--steps and --epochs both set the length; give one of them")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise TrainError(f"--seed {self.seed} is not from 0 to {LARGEST_SEED}")
        if self.bit_depth is not None and not 9 <= self.bit_depth <= 16:
            raise TrainError(f"--bits {self.bit_depth} is not from 9 to 16; 8-bit images need none")

    @property
    def method_class(self) -> type[Method]:
        """The class of the method."""
        return resolve_method(self.method)


def plan(
    method: str,
    data: Path,
    *,
    backbone: str | None = None,
    size: int | None = None,
    geometry: str | None = None,
    options: Mapping[str, Any] | None = None,
    **training: Any,
) -> Recipe:
    """Return the recipe of a method on a data set, with defaults for what is None or left out.

    backbone: a name in BACKBONES; default is the method's, usually resnet18.
    size: height and width of the input in pixels; default is the method's.
    geometry: a name in GEOMETRIES; default is the method's.
    options: values for fields of the method's settings.
    training: further fields of Recipe.
    Raises TrainError.
    """
    kind = resolve_method(method)
    settings = kind.settings_for(backbone or kind.default_backbone)
    if backbone is not None and settings.backbone != backbone:
        raise TrainError(f"--backbone {backbone}: {method} has no choice of it; leave it out")
    try:
        shape = _geometry(settings.geometry, size, geometry)
    except ValueError as error:
        raise TrainError(f"{error}; see --size and --geometry") from error
    settings = dataclasses.replace(settings, geometry=shape, **(options or {}))
    settings = kind.complete_settings(settings, data)
    return Recipe(method, data, settings, **training)


def _geometry(default: Geometry, size: int | None, kind: str | None) -> Geometry:
    """Return the default geometry with another size or kind; raises ValueError."""
    if size is None and kind is None:
        return default
    if size is None:
        size = default.height
    if kind is None:
        kind = default.kind
    if kind == "shorter-crop":
        return Geometry(kind, size, size, round(size * CROP_RATIO))
    return Geometry(kind, size, size)


def _require_positive(flag: str, value: float | None) -> None:
    if value is not None and value <= 0:
        raise TrainError(f"--{flag} {value} is not above 0")
