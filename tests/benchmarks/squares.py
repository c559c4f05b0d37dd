"""A small data set: good parts are grey noise, bad ones carry a bright square."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

COUNTS = {"train/good": 12, "test/good": 4, "test/square": 4}


def write_squares(root: Path) -> Path:
    """Write the images of COUNTS below `root`, 80 x 90 pixels each."""
    rng = np.random.default_rng(0)
    for folder, count in COUNTS.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            image = rng.normal(120, 12, (80, 90, 3)).clip(0, 255).astype(np.uint8)
            if folder == "test/square":
                image[20:50, 30:60] = 255
            cv2.imwrite(str(root / folder / f"{number:03d}.png"), image)
    return root
