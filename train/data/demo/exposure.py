"""Lamp, lens and sensor: from a scene to the image of it."""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from flawline.train.data.demo.scene import DESIGN, Scene
from flawline.train.data.demo.shapes import Rng, cloud, grid
from flawline.train.data.demo.shot import Shot


def light_scene(scene: Scene, shot: Shot, rng: Rng) -> np.ndarray:
    """Return the light that leaves the scene towards the camera, float32 [n, n, 3]."""
    # Lambert's diffuse reflection takes the colour of the surface, gloss that of the lamp.
    lambert, mirror = _reflections(scene, shot)
    light = _illumination(scene, shot, rng)
    light *= _shadow(scene, shot)
    diffuse = (0.3 + 0.7 * lambert) * light
    gloss = 0.6 * scene.gloss * mirror * light
    return np.asarray(scene.albedo * diffuse[..., None] + gloss[..., None])


def _reflections(scene: Scene, shot: Shot) -> tuple[np.ndarray, np.ndarray]:
    """Return the diffuse and the mirror-like reflection of each pixel, [n, n] each."""
    slope_x = _slope(scene.height, 1, 0)
    slope_y = _slope(scene.height, 0, 1)
    normal_length = np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    lx, ly, lz = shot.lamp
    lambert = np.clip((lz - slope_x * lx - slope_y * ly) / normal_length, 0, None) / lz
    # Blinn's model: the vector half-way between the lamp and the camera, which looks straight down.
    length = math.hypot(lx, ly, lz + 1)
    hx = lx / length
    hy = ly / length
    hz = (lz + 1) / length
    facing = np.clip((hz - slope_x * hx - slope_y * hy) / normal_length, 0, 1)
    return lambert, cv2.pow(facing, 40)


def _slope(height: np.ndarray, along_x: int, along_y: int) -> np.ndarray:
    gradient = cv2.Scharr(height, cv2.CV_32F, along_x, along_y, scale=1 / 38)
    return np.asarray(1.2 * np.tanh(gradient))


def _shadow(scene: Scene, shot: Shot) -> np.ndarray:
    """Return the share of the light that arrives, [n, n]: less at the foot of tall parts."""
    n = scene.size
    unit = scene.unit
    lx, ly, _ = shot.lamp
    # The relief a little nearer to the lamp: where it is higher than here, it takes light away.
    towards_lamp = np.array([[1, 0, -lx * 7 * unit], [0, 1, -ly * 7 * unit]])
    around = cv2.warpAffine(scene.height, towards_lamp, (n, n), borderMode=cv2.BORDER_REPLICATE)
    around = cv2.GaussianBlur(around, (0, 0), 2.2 * unit)
    return np.asarray(np.exp((-0.10 / unit) * np.clip(around - scene.height, 0, 8 * unit)))


def _illumination(scene: Scene, shot: Shot, rng: Rng) -> np.ndarray:
    """Return the uneven brightness of lamp and lens, [n, n] near 1."""
    n = scene.size
    x, y = grid(n)
    along = (x * math.cos(shot.azimuth) + y * math.sin(shot.azimuth)) / n
    light = 1 + shot.slope * along
    light = light - (shot.vignette * 2 / n**2) * (x * x + y * y)
    return np.asarray(light + 0.04 * cloud(rng, n, 3))


def photograph(light: np.ndarray, shot: Shot, rng: Rng, monochrome: bool) -> np.ndarray:
    """Pass the light [n, n, 3] through lens, 12-bit sensor and display curve.

    Returns uint8 [n, n, 3]; with a monochrome sensor the three channels are equal.
    """
    n = light.shape[0]
    image = light * shot.balance
    if monochrome:
        image = cv2.cvtColor(light, cv2.COLOR_BGR2GRAY)
    image = cv2.GaussianBlur(image * np.float32(shot.exposure), (0, 0), shot.blur * n / DESIGN)

    noise = rng.standard_normal(image.shape, dtype=np.float32)
    if not monochrome:
        # Under a colour mosaic, two of a pixel's three values are interpolated from its neighbours.
        noise = cv2.GaussianBlur(noise, (0, 0), 0.6) * np.float32(1.6)
    image = np.clip(image, 0, 2)
    # Shot noise grows with the square root of the signal.
    image += noise * np.sqrt(image + np.float32(0.01)) * np.float32(0.011 * shot.noise)

    levels = np.clip(image * 4095, 0, 4095).astype(np.uint16)
    photo = _display_curve()[levels]
    if monochrome:
        return np.repeat(photo[..., None], 3, 2)
    return np.asarray(photo)


@lru_cache(maxsize=1)
def _display_curve() -> np.ndarray:
    """Return the 8-bit value of each of the 4096 linear sensor levels, for a gamma of 2.2."""
    linear = np.arange(4096) / 4095
    return np.round(255 * linear ** (1 / 2.2)).astype(np.uint8)
