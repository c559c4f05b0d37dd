"""What the study compares, and the figures of the CutSwap paper for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Fractions of all patches that a bank holds, from the largest on.
CORESETS = (0.01, 0.001)


@dataclass(frozen=True)
class Conditions:
    """What all variants have in common; the steps are those of the fine-tuning."""

    weights: str
    size: int
    steps: int
    device: str


@dataclass(frozen=True)
class Variant:
    """A method with its settings, and image AUROC in percent as published for MVTec AD.

    published: by fraction of the coreset, the average over the 15 products.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    published: dict[float, float] = field(default_factory=dict)


VARIANTS = {
    "untuned": Variant("patchcore", published={0.01: 98.1, 0.001: 94.5}),
    "cutpaste": Variant("cutpaste", published={0.01: 96.0, 0.001: 92.8}),
    "cutswap-vgg16": Variant("cutswap", {"saliency": "vgg16"}, {0.01: 98.0, 0.001: 95.5}),
    "cutswap-lite0": Variant("cutswap", {"saliency": "lite0"}),
    "cutswap-self": Variant("cutswap", {"saliency": "self"}),
    "cutswap-vgg16-random": Variant(
        "cutswap", {"saliency": "vgg16", "cluster": "random"}, {0.001: 93.1}
    ),
    "cutswap-vgg16-lowest": Variant(
        "cutswap", {"saliency": "vgg16", "cluster": "lowest"}, {0.001: 93.7}
    ),
    "cutswap-lite0-random": Variant("cutswap", {"saliency": "lite0", "cluster": "random"}),
    "cutswap-lite0-lowest": Variant("cutswap", {"saliency": "lite0", "cluster": "lowest"}),
}
# VGG16 is a download of half a gigabyte.
DEFAULT_VARIANTS = tuple(name for name in VARIANTS if "vgg16" not in name)
