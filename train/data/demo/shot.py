"""The circumstances of one exposure: lamp, lens, sensor and pose, spread evenly over the seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Shot:
    """The circumstances of one exposure.

    `azimuth` is the lamp's direction in radians, `lamp` the unit vector (x, y, z) towards it, and
    `slope` how much the light falls off across the image. `balance` holds the gains of B, G and R.
    `highlight`, the place of a reflection, and `pose`, the piece's shift in x and y and its turn,
    run from -1 to 1.
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
    highlight: float
    pose: tuple[float, float, float]


def draw_shot(product: int, seed: int) -> Shot:
    """Return the exposure of one seed; `product` is the product's number."""
    u = _even_numbers(product, seed)
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
        azimuth=float(azimuth),
        lamp=lamp,
        exposure=0.75 + 0.5 * u[0],
        slope=0.05 + 0.3 * u[5],
        vignette=0.05 + 0.3 * u[6],
        balance=balance,
        blur=0.45 + 0.5 * u[7],
        noise=0.6 + 0.9 * u[8],
        contrast=0.7 + 0.6 * u[9],
        highlight=2 * u[10] - 1,
        pose=(2 * u[11] - 1, 2 * u[12] - 1, 2 * u[13] - 1),
    )


def _even_numbers(product: int, seed: int) -> list[float]:
    """Return 14 numbers in 0..1 that fill this range evenly as the seed counts up.

    This is a Kronecker sequence. Small splits are balanced with it: with independent random
    numbers, chance alone could make the defective images of a split the brighter ones.
    """
    primes = [5.0, 2.0, 3.0, 7.0, 11.0, 13.0, 19.0, 23.0, 29.0, 31.0, 37.0, 41.0, 43.0, 47.0]
    start = (product + 1) * 0x9E3779B1
    numbers = []
    for root in np.sqrt(primes):
        step = int(root % 1 * 2**32)
        numbers.append(((seed + 1) * step + start) % 2**32 / 2**32)
    return numbers
