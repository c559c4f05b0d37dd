"""Frames of a part without symmetry, at rest or turned and shifted."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

from flawline.runtime.image import Image

HEIGHT, WIDTH = 240, 320
REGION = (80, 40, 160, 160)


def draw_part(turn: float = 0.0, x: float = 0.0, y: float = 0.0, light: float = 1.0) -> Image:
    """Draw a part without symmetry, turned about the centre of the region."""
    large = np.full((4 * HEIGHT, 4 * WIDTH, 3), 40, np.uint8)
    angle = math.radians(turn)
    centre = np.array([159.5 + x, 119.5 + y])

    def place(points: list[tuple[int, int]]) -> Any:
        turned = np.asarray(points, float) @ [
            [math.cos(angle), math.sin(angle)],
            [-math.sin(angle), math.cos(angle)],
        ]
        return np.round(4 * (turned + centre + 0.5)).astype(np.int32)

    cv2.fillPoly(large, [place([(-60, -50), (60, -50), (60, 50), (-60, 50)])], (140, 150, 160))
    cv2.fillPoly(large, [place([(-45, -35), (0, -35), (0, -10), (-45, -10)])], (30, 20, 200))
    cv2.fillPoly(large, [place([(10, 5), (50, 5), (10, 40)])], (220, 220, 220))
    small = cv2.resize(large, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return np.clip(small * light, 0, 255).astype(np.uint8)


def spotted(*pose: float, spot: tuple[float, float] = (-20.0, 25.0)) -> tuple[Image, Any]:
    """A part with a white spot at a place on it, and the (x, y) of the spot in the frame."""
    frame = draw_part(*pose)
    matrix = cv2.getRotationMatrix2D((0, 0), -pose[0], 1)
    x, y = matrix[:, :2] @ spot + (159.5 + pose[1], 119.5 + pose[2])
    cv2.circle(frame, (round(x), round(y)), 6, (255, 255, 255), cv2.FILLED)
    return frame, (x, y)
