"""Shapes and noises: fields over a picture's pixels that know nothing of a scene."""

from __future__ import annotations

import math

import cv2
import numpy as np

Rng = np.random.Generator


def grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of each pixel from the picture's centre, in pixels, float32."""
    line = np.arange(n, dtype=np.float32) - (n - 1) / 2
    x, y = np.meshgrid(line, line)
    return x, y


def cloud(rng: Rng, n: int, cells: int) -> np.ndarray:
    """Smooth noise of about unit spread with `cells` swells over the width."""
    knots = rng.standard_normal((cells + 1, cells + 1), dtype=np.float32)
    return cv2.resize(knots, (n, n), interpolation=cv2.INTER_CUBIC)


def grain(rng: Rng, n: int, wide: float, high: float) -> np.ndarray:
    """Noise of about unit spread, drawn out to `wide` x `high` pixels."""
    shape = (max(4, round(n / high)), max(4, round(n / wide)))
    return cv2.resize(
        rng.standard_normal(shape, dtype=np.float32), (n, n), interpolation=cv2.INTER_LINEAR
    )


def ramp(x: np.ndarray, soft: float = 0.7) -> np.ndarray:
    """0 below -soft, 1 above +soft, a straight ramp between: the edge of a shape from its signed distance."""
    return np.clip(x / (2 * soft) + 0.5, 0, 1)


def turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    c, s = math.cos(angle), math.sin(angle)
    return c * x + s * y, c * y - s * x


def curve(n: int, points: np.ndarray, width: float) -> np.ndarray:
    """A smooth stroke through `points` [k,2] in pixels, float32 0..1; `width` may be below one pixel."""
    canvas = np.zeros((n, n), np.uint8)
    fixed = np.round(points * 16).astype(np.int32)[None]
    cv2.polylines(canvas, list(fixed), False, 255, max(1, round(width)), cv2.LINE_AA, 4)
    return np.asarray(canvas * np.float32(min(1.0, width) / 255))
