"""ONNX graphs: written from a torch module, converted to FP16, quantized to INT8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from flawline.runtime.image import Image
from flawline.train.progress import Progress, no_progress

T = TypeVar("T")


@dataclass(frozen=True)
class GraphContext:
    """What a writer of another precision may use besides the FP32 graph.

    Attributes:
        fp32_islands: prefixes of the names of nodes that must compute in FP32.
        good_images: prepared good images, uint8 [H, W, 3], that were used for training.
        score_std: standard deviation of the scores of held-out good images.
        progress: called with (what is being done, done, total).
    """

    fp32_islands: tuple[str, ...]
    good_images: Sequence[Image]
    score_std: float
    progress: Progress = no_progress


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` items, evenly spaced from the first to the last."""
    selected = []
    if len(items):
        for position in np.linspace(0, len(items) - 1, min(count, len(items))):
            selected.append(items[int(position)])
    return selected
