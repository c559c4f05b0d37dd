"""A recipe: everything that decides what is trained, checked once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawline.runtime.image import Geometry
from flawline.runtime.tiles import Tiling, grid_geometry
from flawline.train import TrainError
from flawline.train.backbones.facts import IMAGENET
from flawline.train.data.area import AreaDrawing
from flawline.train.data.fixture import FixturePlan
from flawline.train.method import Method, MethodSettings, require_positive, resolve_method

DEFAULT_WEIGHTS = IMAGENET
LARGEST_SEED = 2**31 - 1
# The shorter side before the crop, relative to the side of the crop, for methods whose default is
# another geometry. It is the published ratio of SimpleNet.
CROP_RATIO = 329 / 288


@dataclass(frozen=True)
class Recipe:
    """A method, its settings and the length of its training; `plan` fills in the defaults.

    method: a name in METHODS.
    data: the folder of a product, in a layout that train.data knows.
    settings: the settings of the method.
    weights: pretrained weights, as in `Method.load_weights`.
    steps, epochs: the length of the training; both None for the default length of the method, and
        in a method with a closed form.
    max_minutes: when to stop; the same recipe continues from there.
    seed: of all random choices, from 0 to 2^31 - 1.
    bit_depth: significant bits of 16-bit images, or None for 8-bit images.
    device: cpu, cuda, cuda:1, or auto.
    folds: how many further trainings, each without one block of the good images, give the scores
        that set the threshold; 0 to hold out a fifth of the images, None to decide by their number.
    tiles: the tiles that each image is cut into; None for the whole image as one input.
    area: what is inspected of each image; None for all of it.
    fixture: what lays the part of each image as in a reference picture; None takes it as it lies.
    excluded: content hashes of good images that are left out, as if they were not in the folder.
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
    folds: int | None = None
    tiles: Tiling | None = None
    area: AreaDrawing | None = None
    fixture: FixturePlan | None = None
    excluded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_positive("steps", self.steps)
        require_positive("epochs", self.epochs)
        require_positive("max-minutes", self.max_minutes)
        if self.steps and self.epochs:
            raise TrainError("--steps and --epochs both set the length; give one of them")
        if (self.steps or self.epochs) and self.length(images=1) is None:
            flag = "--steps" if self.steps else "--epochs"
            raise TrainError(
                f"{flag}: {self.method} is fitted in one pass, without steps; leave it out"
            )
        if not 0 <= self.seed <= LARGEST_SEED:
            raise TrainError(f"--seed {self.seed} is not from 0 to {LARGEST_SEED}")
        if self.bit_depth is not None and not 9 <= self.bit_depth <= 16:
            raise TrainError(f"--bits {self.bit_depth} is not from 9 to 16; 8-bit images need none")
        if self.tiles is not None:
            _require_grid(self.tiles, self.settings.geometry)
        if self.folds is not None and (self.folds < 0 or self.folds == 1):
            raise TrainError(
                f"--folds {self.folds} is neither 0 (hold out a fifth of the images) nor at least 2"
            )

    @property
    def method_class(self) -> type[Method]:
        """The class of the method."""
        return resolve_method(self.method)

    def length(self, images: int) -> int | None:
        """Return the optimiser steps on so many images; None in a method with a closed form."""
        default = self.method_class.steps(self.settings, images, self.epochs)
        if default is None:
            return None
        return self.steps or default


def plan(
    method: str,
    data: Path,
    *,
    backbone: str | None = None,
    size: int | None = None,
    geometry: str | None = None,
    options: Mapping[str, Any] | None = None,
    weights: str | None = None,
    **training: Any,
) -> Recipe:
    """Return the recipe of a method on a data set, with defaults for what is None or left out.

    backbone: a name in BACKBONES; default is the method's.
    size: height and width of the input in pixels; default is the method's.
    geometry: a name in GEOMETRIES; default is the method's.
    options: values for fields of the method's settings.
    weights: pretrained weights, as in `Method.load_weights`; default is imagenet.
    training: further fields of Recipe.
    Raises TrainError.
    """
    kind = resolve_method(method)
    settings = kind.settings_for(backbone or kind.default_backbone)
    if backbone is not None and settings.backbone != backbone:
        raise TrainError(f"--backbone {backbone}: {method} has no choice of it; leave it out")
    if weights is not None and not settings.backbone:
        raise TrainError(f"--weights {weights}: {method} has no backbone; leave it out")
    settings = dataclasses.replace(settings, **(options or {}))
    try:
        shape = _geometry(settings.default_geometry, size, geometry)
    except ValueError as error:
        raise TrainError(f"{error}; see --size and --geometry") from error
    settings = dataclasses.replace(settings, geometry=shape)
    settings = kind.complete_settings(settings, data)
    return Recipe(method, data, settings, weights or DEFAULT_WEIGHTS, **training)


def _require_grid(tiles: Tiling, geometry: Geometry) -> None:
    """Raise TrainError for tiles of a geometry that does not allow them."""
    try:
        grid_geometry(tiles, geometry)
    except ValueError as error:
        raise TrainError(f"--tiles: {error}") from error


def _geometry(default: Geometry, size: int | None, kind: str | None) -> Geometry:
    """Return the default geometry with another size or kind; raises ValueError."""
    if size is None and kind is None:
        return default
    if size is None:
        size = default.height
    if kind is None:
        kind = default.kind
    if kind == "shorter-crop":
        return Geometry(kind, size, size, round(size * _crop_ratio(default)))
    return Geometry(kind, size, size)


def _crop_ratio(default: Geometry) -> float:
    """Return the shorter side before the crop, relative to that of the crop."""
    if default.shorter is None:
        return CROP_RATIO
    return default.shorter / min(default.height, default.width)
