"""The piece before it is photographed, and what builders and defects do to it: find a place, paint, mark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from flawline.train.data.demo.shapes import Rng, grid

DESIGN = 320  # lengths in this package are in pixels of a picture this wide


@dataclass
class Scene:
    """The piece before it is photographed, float32 [n,n] or [n,n,3]; `room` is where a defect may lie."""

    albedo: np.ndarray
    height: np.ndarray
    gloss: np.ndarray
    room: np.ndarray
    mask: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.mask = np.zeros(self.height.shape, np.uint8)

    @property
    def unit(self) -> float:
        """Pixels per design pixel."""
        return len(self.height) / DESIGN


def inner(n: int) -> np.ndarray:
    room, edge = np.zeros((n, n), np.uint8), round(0.12 * n)
    room[edge : n - edge, edge : n - edge] = 255
    return room


def lay(scene: Scene, cover: np.ndarray, colour: Sequence[float] | np.ndarray) -> None:
    """Paint `colour` (BGR, or a grey number each) over the scene where `cover` (0..1) says."""
    scene.albedo += (np.asarray(colour, np.float32) - scene.albedo) * cover[..., None]


def spot(scene: Scene, rng: Rng, margin: float = 0) -> np.ndarray:
    """A random place (x, y) inside the scene's room, `margin` pixels from its edge if it is that wide."""
    deep = cv2.distanceTransform(scene.room, cv2.DIST_L2, 3)[::4, ::4]
    ys, xs = np.nonzero(deep > min(margin, 0.9 * float(deep.max())))
    k = int(rng.integers(len(xs)))
    return np.array([4.0 * xs[k], 4.0 * ys[k]])


def about(scene: Scene, rng: Rng, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """x and y of each pixel from a random place of the scene's room."""
    at = spot(scene, rng, margin).tolist()
    x, y = grid(scene.height.shape[0])
    half = x.shape[0] / 2
    return x - (at[0] - half), y - (at[1] - half)


def mark(scene: Scene, cover: np.ndarray, grow: float) -> None:
    """Add what `cover` (0..1) touches to the mask, `grow` design pixels wider."""
    size = 2 * max(1, round(grow * scene.unit)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    touched = cover > min(0.1, 0.3 * float(cover.max()))
    scene.mask |= cv2.dilate(touched.astype(np.uint8) * 255, kernel).astype(np.uint8)
