"""The product `bearing`: a flanged ball bearing, built in polar coordinates about its axis."""

from __future__ import annotations

import math

import cv2
import numpy as np

from flawline.train.data.demo.scene import DESIGN, Scene, mark
from flawline.train.data.demo.shapes import Rng, cloud, grain, grid, ramp
from flawline.train.data.demo.shot import Shot

# Radius as a fraction of the flange's, height, reflectance. From the axis outwards: bore, inner
# race, track, outer race, groove, flange, conveyor belt.
# fmt: off
_PROFILE = np.array([
    (0.00, -14, .03), (0.20, -14, .03), (0.21, 0, .30), (0.225, 2, .62), (0.325, 2, .60),
    (0.335, 0.8, .34), (0.345, -6, .05), (0.485, -6, .05), (0.495, 0.8, .30), (0.505, 2, .62),
    (0.595, 2, .60), (0.605, 1, .22), (0.615, -1, .10), (0.63, -1, .12), (0.64, 0.5, .34),
    (0.65, 1, .42), (0.965, 1, .42), (0.985, 0, .55), (1.0, -2.5, .30), (1.004, -6, .17),
    (2.0, -6, .17)], np.float32)
# fmt: on
_PROFILE_STEPS = 4000  # samples of the profile, over radii from 0 to 2
# Relative BGR.
_BELT = np.array([1, 0.92, 0.86], np.float32)
_STEEL = np.array([1.02, 1, 0.97], np.float32)
_BRASS = np.array([0.5, 1, 1.3], np.float32)

SCREWS = 6
LARGEST_TURN = 0.16  # radians, at a pose of 1
BALLS = 11
_NO_PART = -1


class _TurnedPiece:
    """A piece from a lathe while it is built: tone and height of each pixel about its axis.

    `size` is the flange's radius in pixels, `radius` and `angle` [n, n] are polar coordinates, with
    the radius as a fraction of `size`. `tone` is the grey reflectance, `steel` where it is steel.
    """

    def __init__(self, rng: Rng, shot: Shot, n: int) -> None:
        shift_x, shift_y, turn = shot.pose
        self.turn = LARGEST_TURN * turn
        self.size = 0.435 * n * rng.uniform(0.97, 1.03)
        x, y = grid(n)
        self.x = x - 0.017 * n * shift_x
        self.y = y - 0.017 * n * shift_y
        self.radius = np.hypot(self.x, self.y) / self.size
        self.angle = np.arctan2(self.y, self.x)

        scale = (_PROFILE_STEPS - 1) / 2
        step = np.clip(self.radius * scale, 0, _PROFILE_STEPS - 1).astype(np.int32)
        self.height = _profile(1)[step] * (n / DESIGN)
        tone = _profile(2)[step]
        self.steel = ramp(tone - 0.2, 0.08)
        metal = self._reflection(rng, shot, n)
        belt = 0.12 * grain(rng, n, 1.5, 1.5) + 0.10 * cloud(rng, n, 7)
        self.tone = tone * (1 + belt + self.steel * (metal - belt))

    def _reflection(self, rng: Rng, shot: Shot, n: int) -> np.ndarray:
        """Return the relative brightness of turned metal, [n, n] about 0.

        Turning marks run around the axis, so the lamp's reflection is a bow tie towards the lamp
        and away from it.
        """
        rings = rng.standard_normal((round(0.6 * n), 24), dtype=np.float32)
        columns = (self.angle + math.pi) * (22.9 / (2 * math.pi))
        rows = self.radius * (0.5 * n)
        marks = cv2.remap(rings, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        bow_tie = np.square(np.cos(self.angle - (shot.azimuth + 0.4 * shot.highlight)))
        metal = 0.5 * bow_tie * bow_tie - 0.22
        metal = metal + 0.09 * shot.contrast * marks
        return np.asarray(metal + 0.05 * cloud(rng, n, 8))

    def lay(
        self, cover: np.ndarray, tone: float | np.ndarray, lift: float | np.ndarray = 0.0
    ) -> None:
        """Paint `tone` and raise the piece by `lift` where `cover` [n, n] in 0..1 says."""
        self.tone += (tone - self.tone) * cover
        self.height += lift * cover

    def circle(
        self, rng: Rng, count: int, radius: float, turn: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Arrange `count` parts on a circle of `radius` pixels, each a little off its place.

        Returns the number of the part that each pixel belongs to, and x and y from that part's
        centre, [n, n] each.
        """
        step = 2 * math.pi / count
        index = np.round((self.angle - turn) / step).astype(np.int32) % count
        angle = np.arange(count) * step + turn
        centre = radius * np.stack([np.cos(angle), np.sin(angle)])
        scattered = centre + rng.normal(0, 0.002 * self.size, (2, count))
        centre_x, centre_y = scattered.astype(np.float32)
        return index, self.x - centre_x[index], self.y - centre_y[index]


def _profile(column: int) -> np.ndarray:
    """Return height (column 1) or reflectance (2) at each step of the radius, [_PROFILE_STEPS]."""
    radius = np.linspace(0, 2, _PROFILE_STEPS)
    return np.interp(radius, _PROFILE[:, 0], _PROFILE[:, column]).astype(np.float32)


def build_bearing(rng: Rng, shot: Shot, n: int, defect_rng: Rng, defect: str | None) -> Scene:
    """Build the scene of a bearing of n x n pixels, without one part if that is the defect."""
    piece = _TurnedPiece(rng, shot, n)
    absent_screw = _NO_PART
    absent_ball = _NO_PART
    if defect == "missing_part":
        if defect_rng.random() < 0.5:
            absent_screw = int(defect_rng.integers(SCREWS))
        else:
            absent_ball = int(defect_rng.integers(BALLS))
    no_screw_near, empty_hole = _add_screws(piece, rng, absent_screw)
    cage, empty_seat = _add_balls(piece, shot, rng, absent_ball)

    radius = piece.radius
    hue = np.where((radius > 1)[..., None], _BELT, _STEEL)
    hue += cage[..., None] * (_BRASS - hue)
    # Surface defects lie on flat steel only: on the flange and on the inner race.
    on_flange = (radius > 0.66) & (radius < 0.95) & no_screw_near
    on_inner_race = (radius > 0.24) & (radius < 0.31)
    room = np.zeros((n, n), np.uint8)
    room[on_flange | on_inner_race] = 255
    scene = Scene(piece.tone[..., None] * hue, piece.height, 0.25 * piece.steel, room)
    if defect == "missing_part":
        mark(scene, np.maximum(empty_hole, empty_seat), 1)
    return scene


def _add_screws(piece: _TurnedPiece, rng: Rng, absent: int) -> tuple[np.ndarray, np.ndarray]:
    """Add countersunk hexagon-socket screws to the flange, except the one of number `absent`.

    Returns where no screw is near, bool [n, n], and the cover of the empty hole, [n, n] in 0..1.
    """
    size = piece.size
    index, x, y = piece.circle(rng, SCREWS, 0.81 * size, piece.turn)
    distance = np.hypot(x, y)
    present = index != absent

    # Around the head, the edge of its countersunk hole stays visible as a dark ring.
    countersink = ramp(0.112 * size - distance)
    piece.lay(countersink * 0.9, 0.05, -0.024 * size)
    piece.steel *= 1 - countersink * 0.6

    turns = rng.uniform(0, math.pi / 3, SCREWS).astype(np.float32)
    shades = rng.normal(0.16, 0.02, SCREWS).astype(np.float32)
    head = ramp(0.092 * size - distance) * present
    head_tone = shades[index] * (0.9 + 0.1 * np.cos(distance * (300 / size)))
    bevel = np.clip(distance - 0.075 * size, 0, None) * 0.6
    piece.lay(head, head_tone, 0.028 * size - bevel)

    # The distance to the nearest side of a hexagon.
    around = np.mod(np.arctan2(y, x) - turns[index], math.pi / 3) - math.pi / 6
    socket = ramp(0.043 * size - distance * np.cos(around))
    piece.lay(socket * head * 0.92, 0.015, -0.02 * size)
    piece.lay(ramp(0.06 * size - distance) * ~present * 0.9, 0.012)
    return distance > 0.135 * size, countersink * ~present


def _add_balls(
    piece: _TurnedPiece, shot: Shot, rng: Rng, absent: int
) -> tuple[np.ndarray, np.ndarray]:
    """Add polished balls in a cage to the track, except the one of number `absent`.

    Returns the covers of the cage and of the empty seat, [n, n] in 0..1 each.
    """
    size = piece.size
    ball_size = 0.077 * size
    index, x, y = piece.circle(rng, BALLS, 0.415 * size, rng.uniform(0, 1))
    # From here on in units of the ball's radius.
    x = x / ball_size
    y = y / ball_size
    distance = np.hypot(x, y)
    present = index != absent

    between_balls = ramp((distance - 1.12) * ball_size)
    cage = ramp((0.034 - np.abs(piece.radius - 0.415)) * size) * between_balls
    piece.lay(cage, 0.33 * rng.uniform(0.85, 1.15), 0.03 * size)

    body = ramp((1 - distance) * ball_size)
    piece.height *= 1 - body * present
    brightness = rng.normal(1, 0.05, BALLS).astype(np.float32)
    tone = np.clip(_mirrored_lamp(x, y, shot), 0.02, 1.6) * brightness[index]
    piece.lay(body * present, tone)
    return cage, body * ~present


def _mirrored_lamp(x: np.ndarray, y: np.ndarray, shot: Shot) -> np.ndarray:
    """Return the brightness [n, n] of polished balls, which mirror the lamp.

    `x` and `y` [n, n] are measured from the ball's centre, in units of its radius.
    """
    lx, ly, _ = shot.lamp
    toward = x * lx + y * ly
    glint = np.exp(-((x - 0.75 * lx) ** 2 + (y - 0.75 * ly) ** 2) * 40)
    lit_half = 0.28 * ramp(0.72 - np.hypot(x, y), 0.12) * ramp(toward + 0.2, 0.35)
    return np.asarray(0.16 + 0.22 * toward + lit_half + 1.3 * glint)
