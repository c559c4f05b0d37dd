"""The images of a bundle's self-test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.runtime.golden import Golden
from flawline.runtime.image import Image, Map

# So many good and defective images are stored, or fewer where they are large.
MOST_PER_SIDE = 3
BYTES_PER_SIDE = 32 << 20


def choose_golden(
    images: Sequence[Image], scores: Map, maps: Map, threshold: float, tolerance: float
) -> Golden:
    """Select images as `golden_places` does.

    `images` are as the graph takes them; `scores` [n] and `maps` [n, H, W] are the correct results
    for them, float32.
    """
    selected = golden_places(scores, images[0].nbytes, threshold, tolerance)
    inputs = [images[index] for index in selected]
    return Golden(np.stack(inputs), scores[selected], maps[selected])


def golden_places(
    scores: npt.NDArray[Any], image_bytes: int, threshold: float, tolerance: float
) -> list[int]:
    """Return the indices of the scores [n] that are farthest from the threshold, on either side.

    No engine within the tolerance can flip their decisions. If all are nearer than the tolerance,
    it is that of the lowest score. `image_bytes` is the size of the image of one score.
    """
    count = min(MOST_PER_SIDE, max(1, BYTES_PER_SIDE // image_bytes))
    ascending = np.argsort(scores)
    selected = []
    for index in ascending[:count]:
        if scores[index] < threshold - tolerance:
            selected.append(int(index))
    for index in ascending[-count:]:
        if scores[index] > threshold + tolerance:
            selected.append(int(index))
    return selected or [int(ascending[0])]
