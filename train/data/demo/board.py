"""The product `board`: a populated circuit board, drawn twice as large, BGR plus height in one four-channel picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from flawline.train.data.demo.scene import DESIGN, Scene, inner, mark
from flawline.train.data.demo.shapes import Rng, cloud, ramp
from flawline.train.data.demo.shot import Shot

_TIN, _BLACK, _CERAMIC = (172, 180, 184), (42, 40, 40), (96, 136, 164)
# x, y, width, height, BGR, height over the board
_Bar = tuple[float, float, float, float, tuple[int, int, int], int]


def _chip(w: float, h: float, colour: tuple[int, int, int], tall: int) -> list[_Bar]:
    """A two-ended part: its body and its metal caps, which are also where its pads are."""
    ends: list[_Bar] = [(side * (w / 2 - 2.2), 0, 4.4, h, _TIN, tall) for side in (-1, 1)]
    return [(0, 0, w, h, colour, tall), *ends]


def _package(w: float, h: float, pins: list[tuple[float, float, float, float]]) -> list[_Bar]:
    """A black moulded package with bevelled edge and its pins."""
    legs: list[_Bar] = [(*pin, _TIN, 3) for pin in pins]
    return [*legs, (0, 0, w, h, (36, 35, 35), 7), (0, 0, w - 2.5, h - 2.5, _BLACK, 9)]


_ROW = [-31.5 + 7 * k for k in range(10)]
# fmt: off
_KINDS: dict[str, list[_Bar]] = {
    "res": _chip(20, 10, _BLACK, 4), "cap": _chip(20, 11, _CERAMIC, 7),
    "led": _chip(18, 9.5, (150, 205, 215), 6),
    "tant": [*_chip(28, 15, (36, 120, 200), 9), (-6.5, 0, 2.6, 13, (30, 60, 90), 9)],
    "crystal": [(0, 0, 44, 16, (150, 152, 154), 8), (0, 0, 41, 13, (176, 178, 180), 10)],
    "can": [(0, 0, 40, 40, _BLACK, 4)],
    "header": [(0, 0, 94, 13, (36, 34, 34), 9),
               *((-38.5 + 11 * k, 0, 5, 5, (120, 190, 214), 14) for k in range(8))],
    "jack": [(0, 0, 46, 52, (186, 194, 196), 18), (4, 0, 30, 38, (150, 158, 160), 15),
             *((4, -13.5 + 9 * k, 16, 3, (96, 160, 182), 16) for k in range(4))],
    "qfp": _package(78, 78, [pin for a in _ROW for side in (-42, 42)
                             for pin in ((a, side, 2.8, 8), (side, a, 8, 2.8))]),
    "soic": _package(50, 28, [(-20 + 8 * k, side * 17, 3.2, 8) for k in range(6) for side in (-1, 1)])}
_SMALL = ("cap", "res", "led", "tant", "crystal")  # the kinds that go missing or askew
# kind, centre over the board's width and height, quarter turns
_PARTS: tuple[tuple[str, float, float, int], ...] = (
    ("qfp", .40, .43, 0), ("soic", .78, .31, 0), ("soic", .17, .75, 1), ("can", .83, .64, 0),
    ("can", .83, .80, 0), ("header", .42, .91, 0), ("jack", .145, .20, 0), ("crystal", .40, .67, 0),
    ("led", .61, .13, 0), ("led", .71, .13, 0), ("cap", .15, .41, 1), ("cap", .15, .53, 1),
    ("res", .30, .15, 0), ("res", .40, .15, 0), ("res", .50, .15, 0), ("cap", .615, .27, 1),
    ("cap", .615, .38, 1), ("res", .615, .49, 1), ("res", .36, .79, 0), ("cap", .55, .66, 0),
    ("res", .47, .79, 0), ("cap", .58, .78, 1), ("res", .74, .53, 0), ("tant", .685, .66, 0),
    ("cap", .74, .45, 0))
# fmt: on


def _bar(
    canvas: np.ndarray, x: float, y: float, w: float, h: float, colour: Sequence[float]
) -> None:
    """A filled upright rectangle about (x, y)."""
    first, last = (round(x - w / 2), round(y - h / 2)), (round(x + w / 2), round(y + h / 2))
    cv2.rectangle(canvas, first, last, colour, -1)


def _print(
    canvas: np.ndarray, text: str, x: float, y: float, size: float, bgr: Sequence[int]
) -> None:
    # by way of a mask: OpenCV 5 takes a fourth channel for transparency when it draws text
    ink = np.zeros(canvas.shape[:2], np.uint8)
    cv2.putText(ink, text, (round(x), round(y)), cv2.FONT_HERSHEY_SIMPLEX, size, (255,), 1)
    canvas[ink > 127, :3] = bgr


@lru_cache(maxsize=64)
def _sprite(kind: str, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """A part from above, upright, [k,k,4] BGR + height, and its cover 0/255; both are read only."""
    reach = max(max(abs(x) + w / 2, abs(y) + h / 2) for x, y, w, h, _, _ in _KINDS[kind])
    half = math.ceil(scale * reach * 1.42) + 2
    picture, cover = (
        np.zeros((2 * half, 2 * half, 4), np.uint8),
        np.zeros((2 * half, 2 * half), np.uint8),
    )
    for x, y, w, h, bgr, top in _KINDS[kind]:
        place = half + x * scale, half + y * scale, w * scale, h * scale
        _bar(picture, *place, (*bgr, top))
        _bar(cover, *place, (255,))
    if kind == "can":
        for radius, colour in ((18, (150, 152, 153, 17)), (16, (192, 194, 195, 20))):
            cv2.circle(picture, (half, half), round(radius * scale), colour, -1)
        cv2.ellipse(
            picture, (half, half), (round(16 * scale),) * 2, 0, 115, 245, (44, 42, 42, 20), -1
        )
    lines = {"qfp": ("FL-32M4", "2419 K7"), "soic": ("DRV8",)}.get(kind, ())
    for row, text in enumerate(lines):
        at = half - len(text) * 3.7 * scale, half + (12 * row + 1) * scale
        _print(picture, text, *at, 0.34 * scale, (112, 112, 110))
    return picture, cover


@lru_cache(maxsize=4)
def _bare_board(m: int) -> np.ndarray:
    """The board without parts, [m,m,4] BGR + height: always the same design; read only."""
    scale, rng = m / DESIGN, np.random.default_rng(20240)
    board = np.zeros((m, m, 4), np.uint8)
    board[:] = (52, 92, 30, 12)
    for _ in range(34):
        _track(board, rng, round(rng.choice([2, 2, 3, 5]) * scale))
    drilled = [(x * m, y * m, 2.6) for x, y in rng.uniform(0.07, 0.93, (34, 2)).tolist()]
    for x, y, radius in [*drilled, (0.06 * m, 0.635 * m, 9), (0.945 * m, 0.48 * m, 9)]:
        cv2.circle(board, (round(x), round(y)), round(radius * scale), (*_TIN, 14), -1)
        cv2.circle(board, (round(x), round(y)), round(0.55 * radius * scale), (20, 22, 18, 6), -1)
    for kind, px, py, turns in _PARTS:
        _footprint(board, _KINDS[kind], px * m, py * m, turns, scale)
    _print(board, "FLAWLINE REV C", 0.62 * m, 0.93 * m, 0.36 * scale, (205, 212, 210))
    return board


def _track(board: np.ndarray, rng: Rng, width: int) -> None:
    """A copper track under the coat: straight runs joined at 45 degrees, as routers lay them."""
    m = board.shape[0]
    heading, at, points = int(rng.integers(4)) * 2, rng.uniform(0.08, 0.92, 2) * m, []
    for _ in range(4):
        points.append(np.clip(at, 0.055 * m, 0.945 * m))
        run = rng.uniform(0.05, 0.22) * m
        at = at + run * np.array([math.cos(heading * math.pi / 4), math.sin(heading * math.pi / 4)])
        heading += int(rng.choice([-1, 1]))
    cv2.polylines(board, [np.round(points).astype(np.int32)], False, (58, 106, 38, 12), width)


def _footprint(
    board: np.ndarray, bars: list[_Bar], px: float, py: float, turns: int, scale: float
) -> None:
    """The pads of a part, a little wider than its metal, and the printed frame of a part without legs."""
    for x, y, w, h, bgr, _ in bars:
        x, y, w, h = (y, x, h, w) if turns else (x, y, w, h)
        if bgr == _TIN:
            _bar(
                board, px + x * scale, py + y * scale, (w + 2) * scale, (h + 1) * scale, (*_TIN, 14)
            )
        elif bars[0][5] != 3 and (x, y) == (0, 0):
            first = round(px - (w / 2 + 3) * scale), round(py - (h / 2 + 3) * scale)
            last = round(px + (w / 2 + 3) * scale), round(py + (h / 2 + 3) * scale)
            cv2.rectangle(board, first, last, (205, 212, 210, 13), 1)


def _put(
    board: np.ndarray,
    faulty: np.ndarray,
    kind: str,
    at: np.ndarray,
    angle: float,
    gain: float,
    drawn: bool,
    marked: bool,
) -> None:
    """A part about `at` (pixels), turned by `angle` degrees, onto the board, or its outline into `faulty`."""
    picture, cover = _sprite(kind, board.shape[0] / DESIGN)
    side, corner = cover.shape[0], np.floor(at).astype(int) - cover.shape[0] // 2
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), angle, 1.0)
    turn[:, 2] += at - np.floor(at)
    first, last = np.maximum(corner, 0), np.minimum(corner + side, board.shape[0])
    turn[:, 2] += corner - first
    window, shape = (
        (slice(first[1], last[1]), slice(first[0], last[0])),
        tuple((last - first).tolist()),
    )
    cover = cv2.warpAffine(cover, turn, shape)
    if drawn:
        picture = cv2.warpAffine(picture, turn, shape, borderMode=cv2.BORDER_REPLICATE)
        picture = cv2.convertScaleAbs(picture, alpha=gain)
        board[window][cover > 127] = picture[cover > 127]
    if marked:
        faulty[window] |= cover


def build_board(rng: Rng, shot: Shot, n: int, fault: Rng, kind: str | None) -> Scene:
    m, scale = 2 * n, 2 * n / DESIGN
    board, faulty = _bare_board(m).copy(), np.zeros((m, m), np.uint8)
    structural = kind in ("missing_part", "misplaced_part")
    loose = [k for k, part in enumerate(_PARTS) if part[0] in _SMALL]
    victim = int(fault.choice(loose)) if structural else -1
    for k, (name, x, y, turns) in enumerate(_PARTS):
        at = np.array([x, y]) * m + rng.normal(0, 0.4 * scale, 2)
        angle, gain = 90.0 * turns + rng.normal(0, 0.7), rng.normal(1, 0.05)
        _put(board, faulty, name, at, angle, gain, k != victim, k == victim)
        if k == victim and kind == "misplaced_part":
            at, angle = _misplaced(fault, at, angle, scale)
            _put(board, faulty, name, at, angle, gain, True, True)
    turn = cv2.getRotationMatrix2D((n, n), 0.9 * shot.pose[2], rng.uniform(0.99, 1.01))
    turn[:, 2] = turn[:, 2] + 2 * scale * np.array(shot.pose[:2])
    layers, outline = (
        cv2.resize(
            cv2.warpAffine(each, turn, (m, m), borderMode=cv2.BORDER_REPLICATE),
            (n, n),
            interpolation=cv2.INTER_AREA,
        )
        for each in (board, faulty)
    )
    bgr = layers[..., :3].astype(np.float32) / 255
    albedo = cv2.pow(bgr, 2.2) * (1 + 0.06 * cloud(rng, n, 8) + 0.05 * cloud(rng, n, 15))[..., None]
    albedo *= 1 + np.float32(0.06) * rng.standard_normal(3, dtype=np.float32)
    height = layers[..., 3] * np.float32(0.42 * n / DESIGN)
    scene = Scene(
        albedo, height, 0.05 + 0.5 * ramp(np.minimum(bgr[..., 0], bgr[..., 2]) - 0.6, 0.1), inner(n)
    )
    if structural:
        mark(scene, outline.astype(np.float32) / 255, 2)
    return scene


def _misplaced(fault: Rng, at: np.ndarray, angle: float, scale: float) -> tuple[np.ndarray, float]:
    """Turned, shifted or both."""
    away, how = fault.uniform(0, 2 * math.pi), int(fault.integers(3))
    shift = (0, 4.5, 3.5)[how] * fault.uniform(1, 1.8) * scale
    swing = (22, 0, 14)[how] * fault.uniform(1, 2.2) * fault.choice([-1, 1])
    return at + shift * np.array([math.cos(away), math.sin(away)]), angle + swing
