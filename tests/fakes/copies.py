"""How often a frame is written on its way from the driver's buffer to the image."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np

from flawline.cameras.triggered import TriggeredCamera

TRIES = 5


def memory_per_block(camera: TriggeredCamera) -> float:
    """Return the memory per image of a camera that is not open yet; see `memory_per_image`."""
    handle = camera._open()

    def take() -> np.ndarray | None:
        block = camera._take(handle)
        return None if block is None else block.image

    try:
        return memory_per_image(take)
    finally:
        camera._release(handle)


def memory_per_image(take: Callable[[], np.ndarray | None]) -> float:
    """Return the memory that a call takes at most, as a multiple of the image that it returns.

    Each copy that is made on the way adds one. Other threads may take memory meanwhile, so the
    smallest of several calls counts. A call without an image is repeated.
    """
    # The first one allocates tables.
    while take() is None:
        continue
    found: list[float] = []
    while len(found) < TRIES:
        tracemalloc.start()
        try:
            image = take()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        if image is not None:
            found.append(peak / image.nbytes)
    return min(found)
