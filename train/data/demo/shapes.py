"""Geometry and noise over the pixels of an image, independent of any scene."""

from __future__ import annotations

import math

import cv2
import numpy as np

Rng = np.random.Generator


def grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of each pixel from the image's centre, in pixels, float32 [n, n] each."""
    line = np.arange(n, dtype=np.float32) - (n - 1) / 2
    x, y = np.meshgrid(line, line)
    return x, y


def cloud(rng: Rng, n: int, cells: int) -> np.ndarray:
    """Draw smooth noise with `cells` swells over the width, float32 [n, n] of about unit spread."""
    knots = rng.standard_normal((cells + 1, cells + 1), dtype=np.float32)
    return cv2.resize(knots, (n, n), interpolation=cv2.INTER_CUBIC)


def grain(rng: Rng, n: int, width: float, height: float) -> np.ndarray:
    """Draw noise with grains of `width` x `height` pixels, float32 [n, n] of about unit spread."""
    rows = max(4, round(n / height))
    columns = max(4, round(n / width))
    values = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(values, (n, n), interpolation=cv2.INTER_LINEAR)


def ramp(x: np.ndarray, soft: float = 0.7) -> np.ndarray:
    """Turn a signed distance [n, n] into a cover: 0 below -soft, 1 above +soft, linear between."""
    return np.clip(x / (2 * soft) + 0.5, 0, 1)


def turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotate the coordinates x and y, [n, n] each, by `angle` in radians."""
    cos = math.cos(angle)
    sin = math.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def curve(n: int, points: np.ndarray, width: float) -> np.ndarray:
    """Draw a smooth stroke through `points` [k, 2] in pixels, float32 [n, n] in 0..1.

    A stroke below one pixel of width is fainter.
    """
    canvas = np.zeros((n, n), np.uint8)
    sixteenths = np.round(points * 16).astype(np.int32)  # `shift=4` of OpenCV: 4 fractional bits
    thickness = max(1, round(width))
    cv2.polylines(canvas, [sixteenths], False, 255, thickness, cv2.LINE_AA, 4)
    return np.asarray(canvas * np.float32(min(1.0, width) / 255))
