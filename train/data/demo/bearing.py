"""The product `bearing`: a flanged ball bearing, built up in polar coordinates about its axis."""

from __future__ import annotations

import math

import cv2
import numpy as np

from flawline.train.data.demo.scene import DESIGN, Scene, mark
from flawline.train.data.demo.shapes import Rng, cloud, grain, grid, ramp
from flawline.train.data.demo.shot import Shot

# radius over the flange's, height, reflectance: bore, inner race, track, outer race, groove, flange, belt
# fmt: off
_PROFILE = np.array([
    (0.00, -14, .03), (0.20, -14, .03), (0.21, 0, .30), (0.225, 2, .62), (0.325, 2, .60), (0.335, 0.8, .34),
    (0.345, -6, .05), (0.485, -6, .05), (0.495, 0.8, .30), (0.505, 2, .62), (0.595, 2, .60), (0.605, 1, .22),
    (0.615, -1, .10), (0.63, -1, .12), (0.64, 0.5, .34), (0.65, 1, .42), (0.965, 1, .42), (0.985, 0, .55),
    (1.0, -2.5, .30), (1.004, -6, .17), (2.0, -6, .17)], np.float32)
# fmt: on
_BELT, _STEEL, _BRASS = np.array([[1, 0.92, 0.86], [1.02, 1, 0.97], [0.5, 1, 1.3]], np.float32)


class _Turned:
    """A turned piece as it grows: grey reflectance and height in polar coordinates about its axis."""

    def __init__(self, rng: Rng, shot: Shot, n: int) -> None:
        self.turn = 0.16 * shot.pose[2]
        self.size = 0.435 * n * rng.uniform(0.97, 1.03)
        x, y = grid(n)
        self.x, self.y = (
            each - 0.017 * n * shift for each, shift in zip((x, y), shot.pose[:2], strict=True)
        )
        self.radius, self.angle = np.hypot(self.x, self.y) / self.size, np.arctan2(self.y, self.x)
        step = np.linspace(0, 2, 4000)
        height, tone = (
            np.interp(step, _PROFILE[:, 0], _PROFILE[:, k]).astype(np.float32) for k in (1, 2)
        )
        place = np.clip(self.radius * (3999 / 2), 0, 3999).astype(np.int32)
        self.height, tone = height[place] * (n / DESIGN), tone[place]
        self.steel = ramp(tone - 0.2, 0.08)
        # turning marks run round the axis, so that the reflection is a bow tie towards and away from the lamp
        rings = rng.standard_normal((round(0.6 * n), 24), dtype=np.float32)
        marks = cv2.remap(
            rings,
            (self.angle + math.pi) * (22.9 / (2 * math.pi)),
            self.radius * (0.5 * n),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        )
        tie = np.square(np.cos(self.angle - (shot.azimuth + 0.4 * shot.hot)))
        metal = 0.5 * tie * tie - 0.22 + 0.09 * shot.contrast * marks + 0.05 * cloud(rng, n, 8)
        belt = 0.12 * grain(rng, n, 1.5, 1.5) + 0.10 * cloud(rng, n, 7)
        self.tone = tone * (1 + belt + self.steel * (metal - belt))

    def lay(
        self, cover: np.ndarray, tone: float | np.ndarray, lift: float | np.ndarray = 0.0
    ) -> None:
        """Paint `tone` and raise the piece by `lift` where `cover` says."""
        self.tone += (tone - self.tone) * cover
        self.height += lift * cover

    def circle(self, rng: Rng, count: int, radius: float, turn: float) -> tuple[np.ndarray, ...]:
        """Which of `count` parts on a circle each pixel belongs to, and x and y from that part's centre."""
        step = 2 * math.pi / count
        index = np.round((self.angle - turn) / step).astype(np.int32) % count
        angle = np.arange(count) * step + turn
        centre = radius * np.stack([np.cos(angle), np.sin(angle)])
        cx, cy = (centre + rng.normal(0, 0.002 * self.size, (2, count))).astype(np.float32)
        return index, self.x - cx[index], self.y - cy[index]


def build_bearing(rng: Rng, shot: Shot, n: int, fault: Rng, kind: str | None) -> Scene:
    piece = _Turned(rng, shot, n)
    screw, ball = -1, -1
    if kind == "missing_part":
        screw, ball = (
            (int(fault.integers(6)), -1) if fault.random() < 0.5 else (-1, int(fault.integers(11)))
        )
    clear, bare = _screws(piece, rng, screw)
    cage, empty = _balls(piece, shot, rng, ball)
    radius = piece.radius
    hue = np.where((radius > 1)[..., None], _BELT, _STEEL)
    hue += cage[..., None] * (_BRASS - hue)
    scene = Scene(
        piece.tone[..., None] * hue, piece.height, 0.25 * piece.steel, np.zeros((n, n), np.uint8)
    )
    scene.room[
        ((radius > 0.66) & (radius < 0.95) & clear) | ((radius > 0.24) & (radius < 0.31))
    ] = 255
    if kind == "missing_part":
        mark(scene, np.maximum(bare, empty), 1)
    return scene


def _screws(piece: _Turned, rng: Rng, absent: int) -> tuple[np.ndarray, np.ndarray]:
    """Countersunk hexagon-socket screws; returns where none is near (bool) and where one is absent."""
    size = piece.size
    index, dx, dy = piece.circle(rng, 6, 0.81 * size, piece.turn)
    d, here = np.hypot(dx, dy), index != absent
    sink = ramp(0.112 * size - d)
    piece.lay(sink * 0.9, 0.05, -0.024 * size)
    piece.steel *= 1 - sink * 0.6
    turns, shade = rng.uniform(0, math.pi / 3, 6), rng.normal(0.16, 0.02, 6).astype(np.float32)
    head = ramp(0.092 * size - d) * here
    piece.lay(
        head,
        shade[index] * (0.9 + 0.1 * np.cos(d * (300 / size))),
        0.028 * size - np.clip(d - 0.075 * size, 0, None) * 0.6,
    )
    around = np.mod(np.arctan2(dy, dx) - turns.astype(np.float32)[index], math.pi / 3) - math.pi / 6
    piece.lay(ramp(0.043 * size - d * np.cos(around)) * head * 0.92, 0.015, -0.02 * size)
    piece.lay(ramp(0.06 * size - d) * ~here * 0.9, 0.012)
    return d > 0.135 * size, sink * ~here


def _balls(piece: _Turned, shot: Shot, rng: Rng, absent: int) -> tuple[np.ndarray, np.ndarray]:
    """Polished balls, which mirror the lamp, in a cage; returns the covers of cage and absent ball."""
    size = piece.size
    index, dx, dy = piece.circle(rng, 11, 0.415 * size, rng.uniform(0, 1))
    dx, dy = dx / (0.077 * size), dy / (0.077 * size)
    d, here = np.hypot(dx, dy), index != absent
    cage = ramp((0.034 - np.abs(piece.radius - 0.415)) * size) * ramp((d - 1.12) * (0.077 * size))
    piece.lay(cage, 0.33 * rng.uniform(0.85, 1.15), 0.03 * size)
    lx, ly, _ = shot.lamp
    toward = dx * lx + dy * ly
    glint = np.exp(-((dx - 0.75 * lx) ** 2 + (dy - 0.75 * ly) ** 2) * 40)
    mirror = (
        0.16 + 0.22 * toward + 0.28 * ramp(0.72 - d, 0.12) * ramp(toward + 0.2, 0.35) + 1.3 * glint
    )
    body = ramp((1 - d) * (0.077 * size))
    piece.height *= 1 - body * here
    piece.lay(
        body * here, np.clip(mirror, 0.02, 1.6) * rng.normal(1, 0.05, 11).astype(np.float32)[index]
    )
    return cage, body * ~here
