"""Forms of a method: modules that compute the same function in another way."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from flawline.train import TrainError
from flawline.train.backbones.base import Backbone
from flawline.train.method import Method

SomeMethod = TypeVar("SomeMethod", bound=Method)


def backbone_of(method: Method) -> Backbone:
    """Return the backbone of a method. Raises TrainError for a method without one."""
    backbone = getattr(method, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise TrainError(
            f"{method.name} has no backbone, so its head cannot be measured alone; "
            f"choose another --method"
        )
    return backbone


def levels_of_backbone(method: Method, image: Tensor) -> tuple[Tensor, ...]:
    """Compute the feature maps of a method's backbone from images, uint8 [N, H, W, 3]."""
    return backbone_of(method).extract(image)


class Form(nn.Module, ABC):
    """A form of a method: uint8 [N, H, W, 3] BGR to score [N] and map [N, H, W].

    `head` is the part after the backbone, from its feature maps on, so that its cost can be
    measured alone. The fused modules of the methods have the same two functions.
    """

    @abstractmethod
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]: ...


class LiteralForm(Form):
    """A method's own `forward`, split after the backbone."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.backbone = backbone_of(method)
        self.rest = copy.deepcopy(method)
        # The rest of the method then runs on feature maps in place of an image.
        self.rest.backbone = _GivenLevels()
        # torch's counter does not see the products of a module whose parameters want gradients.
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(*self.backbone.extract(image))

    def head(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = self.rest(levels)
        return result


class _GivenLevels(nn.Module):
    """Takes the place of a backbone where the image has been replaced by its feature maps."""

    def extract(self, levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return levels


@dataclass(frozen=True)
class PublishedCode(Generic[SomeMethod]):
    """The forms of one method that are timed against its fused form.

    Attributes:
        as_published: Everything that the authors' code computes for an image, including work whose
            result is discarded. None when this folder does not have the authors' code.
        as_literal: The same pipeline without that work.
        literal_exports: Whether the literal form consists of operators that torch can export.
        alternatives: Further forms, by their name in the report.
        levels: What the heads of the forms read, from images; the backbone's maps by default.
        perturb: Moves constants away from their initial values, so that a rewrite which forgets
            one of them cannot pass. It is called after a training of no steps.
        notes: Lines for the report that explain the forms.
    """

    as_published: Callable[[SomeMethod], Form] | None = None
    as_literal: Callable[[SomeMethod], Form] = LiteralForm
    literal_exports: bool = True
    alternatives: Mapping[str, Callable[[SomeMethod], nn.Module]] = field(default_factory=dict)
    levels: Callable[[SomeMethod, Tensor], tuple[Tensor, ...]] = levels_of_backbone
    perturb: Callable[[SomeMethod, torch.Generator], None] | None = None
    notes: tuple[str, ...] = ()
