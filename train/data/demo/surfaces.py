"""Products of a single texture: `weave`, a woven cloth, and `metal`, a ground plate."""

from __future__ import annotations

import math

import cv2
import numpy as np

from flawline.train.data.demo.scene import DESIGN, Scene, inner
from flawline.train.data.demo.shapes import Rng, cloud, grain, grid, turned
from flawline.train.data.demo.shot import Shot

_WARP_COLOUR = np.array([0.24, 0.29, 0.31], np.float32)
_WEFT_COLOUR = np.array([0.27, 0.35, 0.39], np.float32)


def build_weave(rng: Rng, shot: Shot, n: int, defect_rng: Rng, defect: str | None) -> Scene:
    """Build the scene of a woven cloth of n x n pixels; its defects all lie on the surface."""
    unit = n / DESIGN
    pitch = 8.4 * unit * rng.uniform(0.97, 1.03)
    x, y = turned(*grid(n), rng.normal(0, 0.02))
    u = (x + 0.22 * pitch * cloud(rng, n, 4)) / pitch + rng.uniform(100, 200)
    v = (y + 0.22 * pitch * cloud(rng, n, 4)) / (pitch * 1.1) + rng.uniform(100, 200)
    warp_height, warp_tone = _threads(rng, shot, u, v, (1.0, 9.0 * unit), 1.0)
    weft_height, weft_tone = _threads(rng, shot, v, u, (9.0 * unit, 1.0), -1.0)

    # At each pixel, the higher of the two threads is visible.
    warp_on_top = warp_height > weft_height
    top = np.where(warp_on_top, warp_height, weft_height)
    tone = np.where(warp_on_top, warp_tone, weft_tone)
    colour = np.where(warp_on_top[..., None], _WARP_COLOUR, _WEFT_COLOUR)
    shade = 1 - 0.6 * (0.4 + 0.6 * shot.contrast) * np.clip(1 - top, 0, 1.3)
    shade += 0.05 * cloud(rng, n, 9) + 0.06 * cloud(rng, n, 15)
    return Scene(
        albedo=colour * np.clip(tone * shade, 0.03, 2)[..., None],
        height=top * (0.16 * pitch * (0.6 + 0.5 * shot.contrast)),
        gloss=np.full((n, n), 0.02, np.float32),
        room=inner(n),
    )


def _threads(
    rng: Rng,
    shot: Shot,
    across: np.ndarray,
    along: np.ndarray,
    fibre: tuple[float, float],
    side: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return height and tone of one set of threads, [n, n] each.

    `across` and `along` [n, n] are coordinates in threads, `fibre` the width and height of the
    fibres in pixels. `side` is 1 or -1: which threads of the set start on top.
    """
    n = across.shape[0]
    whole = np.floor(across)
    index = whole.astype(np.int32)
    local = across - whole - 0.5
    odd = (1 - 2 * (index & 1)).astype(np.float32)

    fibre_width, fibre_height = fibre
    slub = grain(rng, n, 5 * fibre_width + 5, 5 * fibre_height + 5)
    # Each thread has its own width and tone; a slub is a thicker place in it.
    of_thread = rng.standard_normal((2, 400), dtype=np.float32)
    width = 0.47 + 0.022 * of_thread[0][index] + 0.028 * slub
    twist = np.sin((2 * math.pi) * (along * 2.1 + local * (1.5 * side)))

    height = 0.9 * np.sqrt(np.clip(1 - (local / width) ** 2, 0, 1)) + 0.04 * twist
    height += (0.33 * side) * odd * np.cos(math.pi * (along - 0.5))
    tone = 1 + 0.07 * of_thread[1][index] + 0.045 * slub
    fibres = 0.15 * grain(rng, n, fibre_width, fibre_height) + 0.06 * twist
    return height, tone + fibres * shot.contrast


def build_metal(rng: Rng, shot: Shot, n: int, defect_rng: Rng, defect: str | None) -> Scene:
    """Build the scene of a ground plate of n x n pixels; its defects all lie on the surface."""
    unit = n / DESIGN
    marks = _grinding_marks(rng, n)
    # The marks run along x and spread the lamp's reflection into a band across them.
    x, _ = grid(n)
    place = (x / n - 0.55 * shot.highlight) / rng.uniform(0.3, 0.45)
    band = np.exp(-(place**2))
    mottle = 0.045 * cloud(rng, n, 8) + 0.03 * grain(rng, n, 80 * unit, 18 * unit)
    tone = (0.24 + 0.2 * band) * (1 + mottle) * np.exp(0.12 * shot.contrast * marks)
    return Scene(
        albedo=np.repeat(tone[..., None], 3, 2),
        height=0.12 * unit * marks,
        gloss=0.1 + 0.15 * band,
        room=inner(n),
    )


def _grinding_marks(rng: Rng, n: int) -> np.ndarray:
    """Draw fine marks and a few deep grooves in nearly one direction, float32 [n, n]."""
    unit = n / DESIGN
    wide = round(1.15 * n)  # with a border, for the rotation
    fine = grain(rng, wide, 14 * unit, 1)
    fine += 0.8 * grain(rng, wide, 60 * unit, 1)
    fine += 0.7 * grain(rng, wide, 150 * unit, 2 * unit)
    grooves = grain(rng, wide, 110 * unit, 1)
    ridges = np.clip(grooves - 1.9, 0, 2) - np.clip(-grooves - 1.9, 0, 2)
    marks = fine * 0.6 + 3.2 * ridges
    turn = cv2.getRotationMatrix2D((wide / 2, wide / 2), rng.normal(0, 2.0), 1.0)
    edge = (wide - n) // 2
    return cv2.warpAffine(marks, turn, (wide, wide))[edge : edge + n, edge : edge + n]
