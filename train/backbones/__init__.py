"""Pretrained feature extractors and their names. This module imports without torch.

A backbone is a `flawline.train.backbones.base.Backbone`. Methods build one with `create_backbone`
and ask `backbone_facts` for what decides about default settings, without building anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flawline.registry import resolve
from flawline.train import TrainError
from flawline.train.backbones.facts import BackboneFacts

if TYPE_CHECKING:
    from flawline.train.backbones.base import Backbone

# Name -> "module:Class" of a Backbone, which is imported when it is used.
BACKBONES = {
    "resnet18": "flawline.train.backbones.resnet:ResNet",
    "resnet34": "flawline.train.backbones.resnet:ResNet",
    "resnet50": "flawline.train.backbones.resnet:ResNet",
    "resnet101": "flawline.train.backbones.resnet:ResNet",
    "wide_resnet50_2": "flawline.train.backbones.resnet:ResNet",
    "alexnet": "flawline.train.backbones.alexnet:AlexNet",
    "efficientnet_lite0": "flawline.train.backbones.efficientnet_lite:EfficientNetLite0",
    "efficientnet_b5": "flawline.train.backbones.efficientnet:EfficientNetB5",
    "cait_m48_448": "flawline.train.backbones.cait:CaiT",
    "cait_xxs24_224": "flawline.train.backbones.cait:CaiT",
}
DEFAULT_BACKBONE = "resnet18"


def resolve_backbone(name: str) -> type[Backbone]:
    """Return the class of a backbone. Raises TrainError for an unknown name."""
    kind: type[Backbone] = resolve(BACKBONES, name, "backbone", TrainError)
    return kind


def backbone_facts(name: str) -> BackboneFacts:
    """Return the facts of a backbone without building it. Raises TrainError for an unknown name."""
    return resolve_backbone(name).facts(name)


def create_backbone(name: str, levels: tuple[int, ...]) -> Backbone:
    """Build a backbone that returns the feature maps of `levels`, with weights not yet loaded.

    Raises TrainError for an unknown name and for a backbone without one of these levels.
    """
    require_levels(name, levels)
    return resolve_backbone(name)(name, levels)


def require_levels(name: str, levels: tuple[int, ...]) -> None:
    """Raise TrainError for an unknown backbone and for one without one of these levels."""
    if not set(levels) <= set(backbone_facts(name).levels):
        known = [other for other in BACKBONES if set(levels) <= set(backbone_facts(other).levels)]
        wanted = ", ".join(map(str, levels))
        raise TrainError(
            f"backbone {name} does not have the levels {wanted} that this method reads; "
            f"known: {', '.join(known)}"
        )
