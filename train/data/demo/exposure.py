"""Lamp, lens and sensor: from a scene to the picture of it."""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from flawline.train.data.demo.scene import DESIGN, Scene
from flawline.train.data.demo.shapes import Rng, cloud, grid
from flawline.train.data.demo.shot import Shot


@lru_cache(maxsize=1)
def _tone_curve() -> np.ndarray:
    """8-bit value of each of 4096 linear sensor levels: the usual display curve."""
    return np.round(255 * (np.arange(4096) / 4095) ** (1 / 2.2)).astype(np.uint8)


def lit(scene: Scene, shot: Shot, rng: Rng) -> np.ndarray:
    """Light that leaves the scene towards the camera, float32 [n,n,3]."""
    n, s = scene.height.shape[0], scene.unit
    x, y = grid(n)
    gx, gy = (
        1.2 * np.tanh(cv2.Scharr(scene.height, cv2.CV_32F, 1 - k, k, scale=1 / 38)) for k in (0, 1)
    )
    lx, ly, lz = shot.lamp
    long_ = np.sqrt(1 + gx * gx + gy * gy)
    lambert = np.clip((lz - gx * lx - gy * ly) / long_, 0, None) / lz
    # the vector half-way between the lamp and the camera, which looks straight down
    hx, hy, hz = (k / math.hypot(lx, ly, lz + 1) for k in (lx, ly, lz + 1))
    mirror = cv2.pow(np.clip((hz - gx * hx - gy * hy) / long_, 0, 1), 40)
    # what stands higher towards the lamp takes light away: shadows at the foot of tall parts
    away = np.array([[1, 0, -lx * 7 * s], [0, 1, -ly * 7 * s]])
    around = cv2.warpAffine(scene.height, away, (n, n), borderMode=cv2.BORDER_REPLICATE)
    around = cv2.GaussianBlur(around, (0, 0), 2.2 * s)
    shadow = np.exp((-0.10 / s) * np.clip(around - scene.height, 0, 8 * s))
    along = (x * math.cos(shot.azimuth) + y * math.sin(shot.azimuth)) / n
    light = (
        1
        + shot.slope * along
        - (shot.vignette * 2 / n**2) * (x * x + y * y)
        + 0.04 * cloud(rng, n, 3)
    )
    light *= shadow
    diffuse, gloss = (0.3 + 0.7 * lambert) * light, 0.6 * scene.gloss * mirror * light
    return np.asarray(scene.albedo * diffuse[..., None] + gloss[..., None])


def photograph(light: np.ndarray, shot: Shot, rng: Rng, grey: bool) -> np.ndarray:
    """uint8 [n,n,3] of the light through lens, 12-bit sensor and display curve."""
    n = light.shape[0]
    image = cv2.cvtColor(light, cv2.COLOR_BGR2GRAY) if grey else light * shot.balance
    image = cv2.GaussianBlur(image * np.float32(shot.exposure), (0, 0), shot.blur * n / DESIGN)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    if not grey:  # under a colour mosaic two of a pixel's three values come from its neighbours
        noise = cv2.GaussianBlur(noise, (0, 0), 0.6) * np.float32(1.6)
    image = np.clip(image, 0, 2)
    image += noise * np.sqrt(image + np.float32(0.01)) * np.float32(0.011 * shot.noise)
    picture = _tone_curve()[np.clip(image * 4095, 0, 4095).astype(np.uint16)]
    return np.repeat(picture[..., None], 3, 2) if grey else np.asarray(picture)
