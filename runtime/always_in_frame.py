"""Which places of a part are in the camera's frame in every pose that a fixture allows."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from flawline.runtime.find_part import SHIFT_SLACK, TURN_SLACK

# Half of a pixel is what an interpolation reads beside it, and the rest is for rounding.
INTERPOLATED = 1.0


def pixels_in_every_pose(
    height: int, width: int, centre: tuple[float, float], turn: float, shift: float
) -> npt.NDArray[np.bool_]:
    """Return which pixels stay within a frame that is turned and shifted: bool [height, width].

    It is turned about `centre`, (x, y), by up to `turn` degrees in both directions, and shifted by
    up to `shift` pixels in any direction, both a little more for what a pose is known to.
    """
    largest = math.radians(turn + TURN_SLACK)
    margin = shift + SHIFT_SLACK + INTERPOLATED
    x, y = centre
    right, down = np.meshgrid(
        np.arange(width, dtype=np.float32) - x, np.arange(height, dtype=np.float32) - y
    )
    radius = np.hypot(right, down)
    inside = np.ones((height, width), bool)
    # For each edge of the frame, the coordinates towards it and along it, and its distance.
    edges = (
        (right, down, width - 1 - x),
        (-right, -down, x),
        (down, -right, height - 1 - y),
        (-down, right, y),
    )
    for towards, along, distance in edges:
        # A pixel on a circle comes nearest to the edge where it is turned towards it.
        angle = np.abs(np.arctan2(along, towards))
        inside &= radius * np.cos(np.maximum(angle - largest, 0)) <= distance - margin
    return inside
