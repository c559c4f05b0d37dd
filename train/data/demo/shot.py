"""The circumstances of one exposure: lamp, lens, sensor and the piece's pose, spread evenly over the seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Shot:
    """What differs from one exposure to the next.

    `lamp` is the unit vector (x, y, z) towards the light; `hot`, the place of a reflection, and `pose`, the
    piece's shift in x and y and its turn, run from -1 to 1.
    """

    azimuth: float
    lamp: tuple[float, float, float]
    exposure: float
    slope: float
    vignette: float
    balance: np.ndarray
    blur: float
    noise: float
    contrast: float
    hot: float
    pose: tuple[float, ...]


def draw_shot(product: int, seed: int) -> Shot:
    # A Kronecker sequence in the seed: consecutive seeds fill every range evenly, so that small splits are
    # balanced and chance alone does not make, say, the defective pictures the brighter ones.
    roots = np.sqrt(
        [5.0, 2.0, 3.0, 7.0, 11.0, 13.0, 19.0, 23.0, 29.0, 31.0, 37.0, 41.0, 43.0, 47.0]
    )
    steps = [int(root % 1 * 2**32) for root in roots]
    u = [((seed + 1) * step + (product + 1) * 0x9E3779B1) % 2**32 / 2**32 for step in steps]
    azimuth = np.deg2rad(-150 + 60 * u[1])
    tilt = 0.40 + 0.25 * u[2]
    lamp = (
        float(np.cos(azimuth) * tilt),
        float(np.sin(azimuth) * tilt),
        float(np.sqrt(1 - tilt**2)),
    )
    warm = 0.05 * (2 * u[3] - 1)
    balance = np.array([1 - warm, 1 + 0.03 * (2 * u[4] - 1), 1 + warm], np.float32)
    return Shot(
        float(azimuth),
        lamp,
        0.75 + 0.5 * u[0],
        0.05 + 0.3 * u[5],
        0.05 + 0.3 * u[6],
        balance,
        0.45 + 0.5 * u[7],
        0.6 + 0.9 * u[8],
        0.7 + 0.6 * u[9],
        2 * u[10] - 1,
        tuple(2 * k - 1 for k in u[11:]),
    )
