"""A data set of bearings that lie anywhere on a belt, in any orientation."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np

from flawline.train.data.demo import PRODUCTS
from flawline.train.data.demo.bearing import LARGEST_TURN
from flawline.train.data.demo.products import render_shot, shot_of

PRODUCT = "bearing"
SIZE = 320  # pixels of an image
PART_SIZE = 160  # pixels of the square that holds the bearing
GOOD = 100
TEST_GOOD = 50
PER_DEFECT = 20
# Far from the seeds of the demo data, which count up from 0.
FIRST_SEED = 3 << 20
# Of the part's square: the bearing ends within the first radius, the belt begins at the second.
PART_RADIUS = 0.485
BELT_RADIUS = 0.49


def write_rotating_bearings(folder: Path, set_number: int) -> Path:
    """Write a set in the layout of MVTec AD to `folder`, without masks, and return `folder`.

    Sets of different numbers share no piece. The lamp stays where it is; only the piece turns.
    Files that exist are left as they are.
    """
    seed = FIRST_SEED + (set_number << 12)
    groups: list[tuple[str, str | None, int]] = [
        ("train/good", None, GOOD),
        ("test/good", None, TEST_GOOD),
    ]
    for defect in PRODUCTS[PRODUCT].defects:
        groups.append((f"test/{defect}", defect, PER_DEFECT))
    for group, kind, count in groups:
        (folder / group).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            path = folder / group / f"{index:03d}.png"
            if not path.exists():
                cv2.imwrite(str(path), render_rotating(kind, seed))
            seed += 1
    return folder


def render_rotating(defect: str | None, seed: int) -> np.ndarray:
    """Render one bearing on its belt, uint8 [SIZE, SIZE, 3] BGR."""
    shot = shot_of(PRODUCT, seed)
    shift_x, shift_y, turn = shot.pose
    # A turn of 1 becomes half a revolution.
    free = dataclasses.replace(shot, pose=(shift_x, shift_y, turn * math.pi / LARGEST_TURN))
    part, _ = render_shot(PRODUCT, defect, seed, PART_SIZE, free)
    return _lay_on_belt(part, np.random.default_rng((7, seed)))


def _lay_on_belt(part: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Place a rendered part, uint8 [n, n, 3], anywhere on a belt of the colour of its own."""
    n = len(part)
    x, y = np.meshgrid(np.arange(n) - n / 2 + 0.5, np.arange(n) - n / 2 + 0.5)
    radius = np.hypot(x, y)
    cover = np.clip((PART_RADIUS * n - radius) / 3, 0, 1)[..., None]
    colour = part[radius > BELT_RADIUS * n].mean(0)
    image = colour * (1 + 0.02 * rng.standard_normal((SIZE, SIZE, 1)))
    image = image + rng.normal(0, 1.5, (SIZE, SIZE, 3))
    top, left = rng.integers(0, SIZE - n + 1, 2)
    square = image[top : top + n, left : left + n]
    square += (part - square) * cover
    return np.asarray(np.clip(image, 0, 255).round().astype(np.uint8))
