"""The product `board`: a populated circuit board.

It is drawn twice as large as the image, as one canvas of four channels, uint8 [m, m, 4]: BGR and
height.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from flawline.train.data.demo.board_parts import (
    KINDS,
    PLACES,
    SMALL_KINDS,
    TIN,
    Bar,
    draw_part,
    fill_box,
    print_text,
)
from flawline.train.data.demo.scene import DESIGN, Scene, inner, mark
from flawline.train.data.demo.shapes import Rng, cloud, ramp
from flawline.train.data.demo.shot import Shot

_COAT = (52, 92, 30, 12)
_TRACK = (58, 106, 38, 12)
_PRINT = (205, 212, 210)


def build_board(rng: Rng, shot: Shot, n: int, defect_rng: Rng, defect: str | None) -> Scene:
    """Build the scene of a circuit board of n x n pixels, with its part missing or misplaced."""
    m = 2 * n
    board, faulty = _populate(rng, m, defect_rng, defect)

    # The board lies a little differently each time, at a slightly different distance.
    turn = cv2.getRotationMatrix2D((n, n), 0.9 * shot.pose[2], rng.uniform(0.99, 1.01))
    turn[:, 2] = turn[:, 2] + 2 * (m / DESIGN) * np.array(shot.pose[:2])
    layers = _view(board, turn, n)
    outline = _view(faulty, turn, n)

    bgr = layers[..., :3].astype(np.float32) / 255
    unevenness = 1 + 0.06 * cloud(rng, n, 8) + 0.05 * cloud(rng, n, 15)
    albedo = cv2.pow(bgr, 2.2) * unevenness[..., None]
    albedo *= 1 + np.float32(0.06) * rng.standard_normal(3, dtype=np.float32)
    height = layers[..., 3] * np.float32(0.42 * n / DESIGN)
    # Metal and print are bright in blue and red, the coat is not.
    shiny = ramp(np.minimum(bgr[..., 0], bgr[..., 2]) - 0.6, 0.1)
    scene = Scene(albedo, height, 0.05 + 0.5 * shiny, inner(n))
    if faulty.any():
        mark(scene, outline.astype(np.float32) / 255, 2)
    return scene


def _populate(
    rng: Rng, m: int, defect_rng: Rng, defect: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Place all parts on the bare board, each a little off its place.

    Returns the board, uint8 [m, m, 4], and the outline of a missing or misplaced part, uint8 [m,
    m].
    """
    scale = m / DESIGN
    board = _bare_board(m).copy()
    faulty = np.zeros((m, m), np.uint8)
    affected = _choose_affected(defect_rng, defect)
    for number, place in enumerate(PLACES):
        # Draw for every part, also a missing one, so that the others do not depend on the defect.
        at = np.array([place.x, place.y]) * m + rng.normal(0, 0.4 * scale, 2)
        angle = 90.0 * place.turns + rng.normal(0, 0.7)
        gain = rng.normal(1, 0.05)
        if number != affected:
            _draw(board, place.kind, at, angle, gain)
            continue
        _outline(faulty, place.kind, at, angle)
        if defect == "misplaced_part":
            at, angle = _misplace(defect_rng, at, angle, scale)
            _draw(board, place.kind, at, angle, gain)
            _outline(faulty, place.kind, at, angle)
    return board, faulty


def _choose_affected(defect_rng: Rng, defect: str | None) -> int:
    """Return the number of the part that is missing or misplaced, -1 for none."""
    if defect not in ("missing_part", "misplaced_part"):
        return -1
    small = []
    for number, place in enumerate(PLACES):
        if place.kind in SMALL_KINDS:
            small.append(number)
    return int(defect_rng.choice(small))


def _misplace(rng: Rng, at: np.ndarray, angle: float, scale: float) -> tuple[np.ndarray, float]:
    """Return another place and angle: turned, shifted or both."""
    direction = rng.uniform(0, 2 * math.pi)
    how = int(rng.integers(3))
    shift = (0, 4.5, 3.5)[how] * rng.uniform(1, 1.8) * scale
    swing = (22, 0, 14)[how] * rng.uniform(1, 2.2) * rng.choice([-1, 1])
    return at + shift * np.array([math.cos(direction), math.sin(direction)]), angle + swing


def _draw(board: np.ndarray, kind: str, at: np.ndarray, angle: float, gain: float) -> None:
    """Draw a part about `at` (x, y), turned by `angle` degrees, its brightness times `gain`."""
    layers, cover = draw_part(kind, board.shape[0] / DESIGN)
    rows, columns, turn = _placement(cover, at, angle, board.shape[0])
    shape = (columns.stop - columns.start, rows.stop - rows.start)
    cover = cv2.warpAffine(cover, turn, shape)
    layers = cv2.warpAffine(layers, turn, shape, borderMode=cv2.BORDER_REPLICATE)
    layers = cv2.convertScaleAbs(layers, alpha=gain)
    board[rows, columns][cover > 127] = layers[cover > 127]


def _outline(faulty: np.ndarray, kind: str, at: np.ndarray, angle: float) -> None:
    """Add the cover of a part about `at` (x, y), turned by `angle` degrees, to `faulty` [m, m]."""
    _, cover = draw_part(kind, faulty.shape[0] / DESIGN)
    rows, columns, turn = _placement(cover, at, angle, faulty.shape[0])
    shape = (columns.stop - columns.start, rows.stop - rows.start)
    faulty[rows, columns] |= cv2.warpAffine(cover, turn, shape)


def _placement(
    cover: np.ndarray, at: np.ndarray, angle: float, m: int
) -> tuple[slice, slice, np.ndarray]:
    """Return the rows and columns that a part touches on the board, and its warp into them."""
    side = cover.shape[0]
    corner = np.floor(at).astype(int) - side // 2
    first = np.maximum(corner, 0)
    last = np.minimum(corner + side, m)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), angle, 1.0)
    turn[:, 2] += at - np.floor(at)
    turn[:, 2] += corner - first
    columns = slice(int(first[0]), int(last[0]))
    rows = slice(int(first[1]), int(last[1]))
    return rows, columns, turn


def _view(canvas: np.ndarray, turn: np.ndarray, n: int) -> np.ndarray:
    """Return the turned canvas [2n, 2n] at the image's size [n, n]."""
    moved = cv2.warpAffine(canvas, turn, (2 * n, 2 * n), borderMode=cv2.BORDER_REPLICATE)
    return cv2.resize(moved, (n, n), interpolation=cv2.INTER_AREA)


@lru_cache(maxsize=4)
def _bare_board(m: int) -> np.ndarray:
    """Draw the board without parts, uint8 [m, m, 4], always of the same design.

    The array is shared: do not write to it.
    """
    scale = m / DESIGN
    rng = np.random.default_rng(20240)
    board = np.zeros((m, m, 4), np.uint8)
    board[:] = _COAT
    for _ in range(34):
        _draw_track(board, rng, round(rng.choice([2, 2, 3, 5]) * scale))
    for x, y in rng.uniform(0.07, 0.93, (34, 2)).tolist():
        _drill(board, x * m, y * m, 2.6)
    _drill(board, 0.06 * m, 0.635 * m, 9)
    _drill(board, 0.945 * m, 0.48 * m, 9)
    for place in PLACES:
        _draw_footprint(board, KINDS[place.kind], place.x * m, place.y * m, place.turns)
    print_text(board, "FLAWLINE REV C", 0.62 * m, 0.93 * m, 0.36 * scale, _PRINT)
    return board


def _draw_track(board: np.ndarray, rng: Rng, width: int) -> None:
    """Draw a copper track below the coat: straight runs joined at 45 degrees."""
    m = board.shape[0]
    heading = int(rng.integers(4)) * 2
    at = rng.uniform(0.08, 0.92, 2) * m
    points = []
    for _ in range(4):
        points.append(np.clip(at, 0.055 * m, 0.945 * m))
        run = rng.uniform(0.05, 0.22) * m
        angle = heading * math.pi / 4
        at = at + run * np.array([math.cos(angle), math.sin(angle)])
        heading += int(rng.choice([-1, 1]))
    cv2.polylines(board, [np.round(points).astype(np.int32)], False, _TRACK, width)


def _drill(board: np.ndarray, x: float, y: float, radius: float) -> None:
    """Draw a plated hole about (x, y) with a ring of `radius` design pixels."""
    scale = board.shape[0] / DESIGN
    centre = (round(x), round(y))
    cv2.circle(board, centre, round(radius * scale), (*TIN, 14), -1)
    cv2.circle(board, centre, round(0.55 * radius * scale), (20, 22, 18, 6), -1)


def _draw_footprint(board: np.ndarray, bars: list[Bar], x: float, y: float, turns: int) -> None:
    """Draw the pads of a part, a little wider than its metal, and its printed frame.

    A part with legs has no frame: its first bar is a leg, of height 3.
    """
    scale = board.shape[0] / DESIGN
    has_legs = bars[0].top == 3
    for bar in bars:
        if turns:
            bar = bar._replace(x=bar.y, y=bar.x, width=bar.height, height=bar.width)
        if bar.colour == TIN:
            width = (bar.width + 2) * scale
            height = (bar.height + 1) * scale
            fill_box(board, x + bar.x * scale, y + bar.y * scale, width, height, (*TIN, 14))
        elif not has_legs and (bar.x, bar.y) == (0, 0):
            reach_x = (bar.width / 2 + 3) * scale
            reach_y = (bar.height / 2 + 3) * scale
            first = (round(x - reach_x), round(y - reach_y))
            last = (round(x + reach_x), round(y + reach_y))
            cv2.rectangle(board, first, last, (*_PRINT, 13), 1)
