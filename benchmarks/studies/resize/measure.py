"""Times of resizing one camera frame with `prepare`, OpenCV and PIL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from flawline.benchmarks.measure.timing import alternate
from flawline.runtime.image import Geometry, Image, prepare

FRAME = (1920, 1080)  # width, height
SIZE = (256, 256)
PIL = "PIL bilinear"


@dataclass(frozen=True)
class ResizeRow:
    """One way to resize: median time, and mean distance from the reference in grey levels."""

    name: str
    ms: float
    distance: float


def measure_resizing(rounds: int) -> list[ResizeRow]:
    """Return one row for each way to resize, `prepare` first and the reference last.

    The reference is PIL, or OpenCV's INTER_AREA where PIL is not installed. Distances are from it.
    Sets OpenCV to one thread.
    """
    cv2.setNumThreads(1)
    calls = _resizing_calls(_camera_frame())
    medians = alternate(calls, rounds)
    reference = list(calls.values())[-1]().astype(int)
    rows = []
    for name, call in calls.items():
        difference = np.abs(call().astype(int) - reference)
        rows.append(ResizeRow(name, medians[name], float(difference.mean())))
    return rows


def _camera_frame() -> Image:
    """A smooth random frame, uint8 [1080, 1920, 3]."""
    rng = np.random.default_rng(0)
    # Enlarged noise has the smooth gradients of a photograph.
    coarse = rng.integers(0, 256, (FRAME[1] // 8, FRAME[0] // 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, FRAME, interpolation=cv2.INTER_CUBIC), np.uint8)


def _resizing_calls(frame: Image) -> dict[str, Callable[[], Image]]:
    geometry = Geometry("stretch", height=SIZE[1], width=SIZE[0])

    def by_opencv(interpolation: int) -> Image:
        return np.asarray(cv2.resize(frame, SIZE, interpolation=interpolation), np.uint8)

    calls: dict[str, Callable[[], Image]] = {
        "prepare()": lambda: prepare(frame, geometry),
        "cv2 INTER_LINEAR": lambda: by_opencv(cv2.INTER_LINEAR),
        "cv2 INTER_AREA": lambda: by_opencv(cv2.INTER_AREA),
    }
    try:
        from PIL import Image as pil_image
    except ImportError:
        return calls
    pil_frame = pil_image.fromarray(frame)

    def by_pil() -> Image:
        return np.asarray(pil_frame.resize(SIZE, pil_image.Resampling.BILINEAR))

    calls[PIL] = by_pil
    return calls
