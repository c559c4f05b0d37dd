"""Random shapes of defects: curves that wander and irregular patches."""

from __future__ import annotations

import numpy as np

from flawline.train.data.demo.scene import Scene, about
from flawline.train.data.demo.shapes import Rng, cloud, turned


def wander(rng: Rng, start: np.ndarray, length: float, bend: float) -> np.ndarray:
    """Draw a curve of `length` pixels through `start`; its heading drifts by about `bend` radians.

    Returns its points, [40, 2].
    """
    drift = np.cumsum(rng.standard_normal(40)) * bend / 6
    arc = np.linspace(-0.5, 0.5, 40)
    angle = rng.uniform(0, 2 * np.pi) + drift
    angle = angle + rng.normal(0, bend) * arc
    heading = np.stack([np.cos(angle), np.sin(angle)], 1)
    path = np.cumsum(heading, 0) * (length / 40)
    return np.asarray(path - path[20] + start)


def blot(scene: Scene, rng: Rng, radius: float, rough: float) -> np.ndarray:
    """Draw an irregular patch of about `radius` pixels at a random place of the scene.

    Returns a field [n, n] in pixels, similar to a signed distance and positive inside the patch.
    `rough` is how far its edge deviates from an ellipse, as a fraction of the radius.
    """
    n = scene.size
    x, y = turned(*about(scene, rng, radius), rng.uniform(0, np.pi))
    waves = cloud(rng, n, 14) + 0.6 * cloud(rng, n, 40)
    ragged = np.clip(waves, -1.5, 1.5) * (rough * radius)
    distance = np.hypot(x, y * rng.uniform(1.0, 1.6))
    return np.asarray(radius - distance + ragged)
