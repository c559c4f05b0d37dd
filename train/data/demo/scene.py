"""The piece before it is photographed, and the operations that builders and defects share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from flawline.train.data.demo.shapes import Rng, grid

DESIGN = 320  # lengths in this package are in pixels of an image of this width


@dataclass
class Scene:
    """The piece before it is photographed.

    `albedo` is its reflectance, float32 [n, n, 3] BGR in 0..1; `height` its relief in pixels and
    `gloss` its mirror-like part, float32 [n, n]; `room` is above 0 where a defect may lie, uint8
    [n, n]; `mask` is 255 where a defect was laid, uint8 [n, n].
    """

    albedo: np.ndarray
    height: np.ndarray
    gloss: np.ndarray
    room: np.ndarray
    mask: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.mask = np.zeros(self.height.shape, np.uint8)

    @property
    def size(self) -> int:
        """Width and height in pixels."""
        return len(self.height)

    @property
    def unit(self) -> float:
        """Pixels per design pixel."""
        return self.size / DESIGN


def inner(n: int) -> np.ndarray:
    """Return a `room` of all pixels except a margin, uint8 [n, n] of 0 or 255."""
    room = np.zeros((n, n), np.uint8)
    edge = round(0.12 * n)
    room[edge : n - edge, edge : n - edge] = 255
    return room


def lay(scene: Scene, cover: np.ndarray, colour: Sequence[float] | np.ndarray) -> None:
    """Paint `colour` over the scene where `cover` [n, n] in 0..1 says.

    `colour` is BGR, or the reflectance of each channel and pixel [n, n, 3].
    """
    painted = np.asarray(colour, np.float32)
    scene.albedo += (painted - scene.albedo) * cover[..., None]


def spot(scene: Scene, rng: Rng, margin: float = 0) -> np.ndarray:
    """Draw a place (x, y) inside the scene's room, `margin` pixels from its edge where possible."""
    # A quarter of the resolution is precise enough for a random place.
    depth = cv2.distanceTransform(scene.room, cv2.DIST_L2, 3)[::4, ::4]
    deepest = float(depth.max())
    rows, columns = np.nonzero(depth > min(margin, 0.9 * deepest))
    index = int(rng.integers(len(columns)))
    return np.array([4.0 * columns[index], 4.0 * rows[index]])


def about(scene: Scene, rng: Rng, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of each pixel from a random place of the scene's room, [n, n] each."""
    place_x, place_y = spot(scene, rng, margin).tolist()
    x, y = grid(scene.size)
    half = scene.size / 2
    return x - (place_x - half), y - (place_y - half)


def mark(scene: Scene, cover: np.ndarray, grow: float) -> None:
    """Add what `cover` [n, n] in 0..1 touches to the mask, `grow` design pixels wider."""
    touched = cover > min(0.1, 0.3 * float(cover.max()))
    side = 2 * max(1, round(grow * scene.unit)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    scene.mask |= cv2.dilate(touched.astype(np.uint8) * 255, kernel).astype(np.uint8)
