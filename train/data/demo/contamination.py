"""The defect `contamination`: a foreign fibre, particle or droplet that lies on the surface."""

from __future__ import annotations

import cv2
import numpy as np

from flawline.train.data.demo.scene import Scene, lay, mark, spot
from flawline.train.data.demo.shapes import Rng, curve, ramp
from flawline.train.data.demo.strokes import blot, wander


def contaminate(scene: Scene, rng: Rng, severity: float) -> None:
    """Lay one foreign body of a random kind onto the scene; `severity` is in 0..1."""
    kinds = (_fibre, _particle, _droplet)
    lay_kind = kinds[int(rng.integers(3))]
    lay_kind(scene, rng, severity)


def _fibre(scene: Scene, rng: Rng, severity: float) -> None:
    unit = scene.unit
    path = wander(rng, spot(scene, rng), (40 + 40 * severity) * unit, 1.6)
    width = (1.0 + 1.0 * severity) * unit
    line = cv2.GaussianBlur(curve(scene.size, path, width), (0, 0), 0.45 * unit)
    shadow = cv2.GaussianBlur(curve(scene.size, path + 1.8 * unit, width), (0, 0), 1.1 * unit)
    scene.albedo *= 1 - 0.35 * shadow[..., None]
    lay(scene, line * (0.6 + 0.35 * severity), _foreign_colour(scene, rng, line))
    mark(scene, np.maximum(line, shadow), 1)


def _particle(scene: Scene, rng: Rng, severity: float) -> None:
    unit = scene.unit
    distance = blot(scene, rng, (3.5 + 4 * severity) * unit, 0.3)
    body = ramp(distance, 0.8 * max(unit, 1))
    shift = np.array([[1, 0, 1.5 * unit], [0, 1, 2.0 * unit]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(body, shift, body.shape[::-1]), (0, 0), 1.2 * unit)
    scene.albedo *= 1 - 0.4 * shadow[..., None]
    lay(scene, body * 0.92, _foreign_colour(scene, rng, body))
    scene.height += body * np.clip(distance, 0, 4 * unit) * 0.6
    mark(scene, np.maximum(body, shadow), 1)


def _droplet(scene: Scene, rng: Rng, severity: float) -> None:
    unit = scene.unit
    radius = (5 + 5 * severity) * unit
    distance = blot(scene, rng, radius, 0.08)
    body = ramp(distance, 0.8 * max(unit, 1))
    rim = body * np.exp(-np.abs(distance) / (1.3 * unit))
    scene.albedo *= 1 + (0.12 * body - (0.35 + 0.2 * severity) * rim)[..., None]
    dome = np.sqrt(np.clip(distance, 0, radius) * radius)
    scene.height += body * (0.35 * dome - 0.5 * np.clip(scene.height, -1, 1))
    scene.gloss += body * 0.9
    mark(scene, body, 2)


def _foreign_colour(scene: Scene, rng: Rng, cover: np.ndarray) -> np.ndarray:
    """Draw a dark or light colour, BGR [3], that differs from the surface below `cover` [n, n]."""
    dark = rng.uniform(0.03, 0.08)
    light = rng.uniform(0.55, 0.8)
    below = 0.2
    if (cover > 0.5).any():
        below = float(np.median(scene.albedo[cover > 0.5]))

    # A medium surface can have either; on a dark or a light one, only the other is visible.
    tone = light
    if rng.random() < 0.5:
        tone = dark
    if below < 0.12:
        tone = light
    elif below > 0.4:
        tone = dark
    return np.asarray(tone * rng.uniform(0.8, 1.2, 3))
