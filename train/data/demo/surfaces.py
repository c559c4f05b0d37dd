"""The products whose one texture fills the picture: `weave`, a woven cloth, and `metal`, a ground plate."""

from __future__ import annotations

import math

import cv2
import numpy as np

from flawline.train.data.demo.scene import DESIGN, Scene, inner
from flawline.train.data.demo.shapes import Rng, cloud, grain, grid, turned
from flawline.train.data.demo.shot import Shot

_WARP, _WEFT = np.array([0.24, 0.29, 0.31], np.float32), np.array([0.27, 0.35, 0.39], np.float32)


def build_weave(rng: Rng, shot: Shot, n: int, fault: Rng, kind: str | None) -> Scene:
    s = n / DESIGN
    pitch = 8.4 * s * rng.uniform(0.97, 1.03)
    x, y = turned(*grid(n), rng.normal(0, 0.02))
    u = (x + 0.22 * pitch * cloud(rng, n, 4)) / pitch + rng.uniform(100, 200)
    v = (y + 0.22 * pitch * cloud(rng, n, 4)) / (pitch * 1.1) + rng.uniform(100, 200)
    warp = _threads(rng, shot, u, v, (1.0, 9.0 * s), 1.0)
    weft = _threads(rng, shot, v, u, (9.0 * s, 1.0), -1.0)
    over = warp[0] > weft[0]
    top = np.where(over, warp[0], weft[0])
    base = np.where(over[..., None], _WARP, _WEFT)
    shade = 1 - 0.6 * (0.4 + 0.6 * shot.contrast) * np.clip(1 - top, 0, 1.3)
    shade += 0.05 * cloud(rng, n, 9) + 0.06 * cloud(rng, n, 15)
    albedo = base * np.clip(np.where(over, warp[1], weft[1]) * shade, 0.03, 2)[..., None]
    height = top * (0.16 * pitch * (0.6 + 0.5 * shot.contrast))
    return Scene(albedo, height, np.full((n, n), 0.02, np.float32), inner(n))


def _threads(
    rng: Rng,
    shot: Shot,
    across: np.ndarray,
    along: np.ndarray,
    fibre: tuple[float, float],
    lift: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Height and tone of one set of threads; in coordinates that count them; `lift` is 1 or -1."""
    n = across.shape[0]
    whole = np.floor(across)
    index, local = whole.astype(np.int32), across - whole - 0.5
    odd = (1 - 2 * (index & 1)).astype(np.float32)
    slub = grain(rng, n, *(5 * k + 5 for k in fibre))
    own = rng.standard_normal((2, 400), dtype=np.float32)
    width = 0.47 + 0.022 * own[0][index] + 0.028 * slub
    twist = np.sin((2 * math.pi) * (along * 2.1 + local * (1.5 * lift)))
    height = 0.9 * np.sqrt(np.clip(1 - (local / width) ** 2, 0, 1)) + 0.04 * twist
    height += (0.33 * lift) * odd * np.cos(math.pi * (along - 0.5))
    tone = 1 + 0.07 * own[1][index] + 0.045 * slub
    return height, tone + (0.15 * grain(rng, n, *fibre) + 0.06 * twist) * shot.contrast


def build_metal(rng: Rng, shot: Shot, n: int, fault: Rng, kind: str | None) -> Scene:
    s, wide = n / DESIGN, round(1.15 * n)
    fine = grain(rng, wide, 14 * s, 1) + 0.8 * grain(rng, wide, 60 * s, 1)
    fine += 0.7 * grain(rng, wide, 150 * s, 2 * s)
    grooves = grain(rng, wide, 110 * s, 1)
    streak = fine * 0.6 + 3.2 * (np.clip(grooves - 1.9, 0, 2) - np.clip(-grooves - 1.9, 0, 2))
    turn = cv2.getRotationMatrix2D((wide / 2, wide / 2), rng.normal(0, 2.0), 1.0)
    edge = (wide - n) // 2
    marks = cv2.warpAffine(streak, turn, (wide, wide))[edge : edge + n, edge : edge + n]
    # grinding marks run along x and throw the lamp's reflection into a band across them
    band = np.exp(-(((grid(n)[0] / n - 0.55 * shot.hot) / rng.uniform(0.3, 0.45)) ** 2))
    mottle = 0.045 * cloud(rng, n, 8) + 0.03 * grain(rng, n, 80 * s, 18 * s)
    tone = (0.24 + 0.2 * band) * (1 + mottle) * np.exp(0.12 * shot.contrast * marks)
    return Scene(np.repeat(tone[..., None], 3, 2), 0.12 * s * marks, 0.1 + 0.15 * band, inner(n))
