"""ONNX graphs: written from a torch module, converted to FP16, quantized to INT8.

A new precision is one entry of `flawline.runtime.precisions.PRECISIONS` and one of `WRITERS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from flawline.runtime.image import Image
from flawline.train.progress import Progress, no_progress

T = TypeVar("T")

# Precision -> "module:function" that writes its graph from the FP32 graph:
# `write(fp32: bytes, context: GraphContext) -> bytes`. A precision that runs the FP32 graph has
# none.
WRITERS = {
    "fp16": "flawline.export.graphs.to_fp16:write",
    "int8": "flawline.export.graphs.to_int8:write",
}


@dataclass(frozen=True)
class GraphContext:
    """The input of a writer besides the FP32 graph.

    Attributes:
        fp32_islands: prefixes of the names of nodes that must compute in FP32.
        good_images: good images that were used for training, as the graph takes them.
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
