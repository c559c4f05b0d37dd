"""python -m benchmarks.prepare: what preparing a camera frame costs on one core, and how near PIL it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from flawline.benchmarks.measure.timing import alternate
from flawline.runtime.image import Geometry, prepare


def main() -> int:
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (135, 240, 3), dtype=np.uint8)
    frame = cv2.resize(coarse, (1920, 1080), interpolation=cv2.INTER_CUBIC)
    geometry = Geometry("stretch", 256, 256)
    calls: dict[str, Callable[[], Any]] = {
        "prepare()": lambda: prepare(frame, geometry),
        "cv2 INTER_AREA": lambda: cv2.resize(frame, (256, 256), interpolation=cv2.INTER_AREA),
        "cv2 INTER_LINEAR": lambda: cv2.resize(frame, (256, 256), interpolation=cv2.INTER_LINEAR),
    }
    try:
        from PIL import Image
    except ImportError:
        print("PIL is not installed: its row is missing")
    else:
        picture = Image.fromarray(frame)
        calls["PIL bilinear"] = lambda: np.asarray(
            picture.resize((256, 256), Image.Resampling.BILINEAR)
        )
    medians = alternate(calls, rounds=10)
    reference = calls.get("PIL bilinear", calls["cv2 INTER_AREA"])().astype(int)
    print(
        "1920x1080 to 256x256, one core, medians of alternating rounds; distance to the last row in grey levels"
    )
    for name, milliseconds in medians.items():
        distance = np.abs(calls[name]().astype(int) - reference).mean()
        print(
            f"{name:<18}{milliseconds:7.2f} ms {milliseconds / medians['prepare()']:6.2f} x {distance:7.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
