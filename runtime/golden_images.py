"""The images of a bundle's self-test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flawline.runtime.golden import Golden
from flawline.runtime.image import Image, Map

# So many good and defective images are stored, or fewer where they are large.
MOST_PER_SIDE = 3
BYTES_PER_SIDE = 32 << 20


def choose_golden(
    images: Sequence[Image], scores: Map, maps: Map, threshold: float, tolerance: float
) -> Golden:
    """Select the images that are farthest from the threshold, on either side.

    No engine within the tolerance can flip their decisions. If all images are nearer than the
    tolerance, the one with the lowest score is selected. `images` are as the graph takes them;
    `scores` [n] and `maps` [n, H, W] are the correct results for them, float32.
    """
    fitting = BYTES_PER_SIDE // images[0].nbytes
    count = min(MOST_PER_SIDE, max(1, fitting))
    ascending = np.argsort(scores)
    selected = []
    for index in ascending[:count]:
        if scores[index] < threshold - tolerance:
            selected.append(int(index))
    for index in ascending[-count:]:
        if scores[index] > threshold + tolerance:
            selected.append(int(index))
    if not selected:
        selected.append(int(ascending[0]))
    inputs = [images[index] for index in selected]
    return Golden(np.stack(inputs), scores[selected], maps[selected])
