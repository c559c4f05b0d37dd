"""Electronic parts of the circuit board: their shapes from above, and where they are placed.

Lengths are in design pixels of the board, which is drawn twice as large as the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

Colour = tuple[int, int, int]  # BGR

TIN: Colour = (172, 180, 184)
_BLACK: Colour = (42, 40, 40)
_CERAMIC: Colour = (96, 136, 164)
_GOLD: Colour = (120, 190, 214)
_COPPER: Colour = (96, 160, 182)


class Bar(NamedTuple):
    """An upright box of a part: its centre from the part's, its size, its colour and its height."""

    x: float
    y: float
    width: float
    height: float
    colour: Colour
    top: int


class Place(NamedTuple):
    """A part's place on the board: the centre over the board's width and height, quarter turns."""

    kind: str
    x: float
    y: float
    turns: int


def _chip(width: float, height: float, colour: Colour, top: int) -> list[Bar]:
    """A part with two ends: its body and its metal caps, which are also where its pads are."""
    end = width / 2 - 2.2
    return [
        Bar(0, 0, width, height, colour, top),
        Bar(-end, 0, 4.4, height, TIN, top),
        Bar(end, 0, 4.4, height, TIN, top),
    ]


def _tantalum() -> list[Bar]:
    stripe = Bar(-6.5, 0, 2.6, 13, (30, 60, 90), 9)
    return [*_chip(28, 15, (36, 120, 200), 9), stripe]


def _crystal() -> list[Bar]:
    return [Bar(0, 0, 44, 16, (150, 152, 154), 8), Bar(0, 0, 41, 13, (176, 178, 180), 10)]


def _header() -> list[Bar]:
    bars = [Bar(0, 0, 94, 13, (36, 34, 34), 9)]
    for k in range(8):
        bars.append(Bar(-38.5 + 11 * k, 0, 5, 5, _GOLD, 14))
    return bars


def _jack() -> list[Bar]:
    bars = [Bar(0, 0, 46, 52, (186, 194, 196), 18), Bar(4, 0, 30, 38, (150, 158, 160), 15)]
    for k in range(4):
        bars.append(Bar(4, -13.5 + 9 * k, 16, 3, _COPPER, 16))
    return bars


def _quad_package() -> list[Bar]:
    """A package with ten pins on each of its four sides."""
    pins = []
    for k in range(10):
        along = -31.5 + 7 * k
        for side in (-42, 42):
            pins.append(Bar(along, side, 2.8, 8, TIN, 3))
            pins.append(Bar(side, along, 8, 2.8, TIN, 3))
    return [*pins, *_package(78, 78)]


def _dual_package() -> list[Bar]:
    """A package with six pins on each of two sides."""
    pins = []
    for k in range(6):
        for side in (-1, 1):
            pins.append(Bar(-20 + 8 * k, side * 17, 3.2, 8, TIN, 3))
    return [*pins, *_package(50, 28)]


def _package(width: float, height: float) -> list[Bar]:
    """A black moulded body with a bevelled edge."""
    return [
        Bar(0, 0, width, height, (36, 35, 35), 7),
        Bar(0, 0, width - 2.5, height - 2.5, _BLACK, 9),
    ]


KINDS: dict[str, list[Bar]] = {
    "res": _chip(20, 10, _BLACK, 4),
    "cap": _chip(20, 11, _CERAMIC, 7),
    "led": _chip(18, 9.5, (150, 205, 215), 6),
    "tant": _tantalum(),
    "crystal": _crystal(),
    "can": [Bar(0, 0, 40, 40, _BLACK, 4)],
    "header": _header(),
    "jack": _jack(),
    "qfp": _quad_package(),
    "soic": _dual_package(),
}
# The kinds that the defects leave out or misplace.
SMALL_KINDS = ("cap", "res", "led", "tant", "crystal")
_LABELS = {"qfp": ("FL-32M4", "2419 K7"), "soic": ("DRV8",)}

# fmt: off
PLACES = (
    Place("qfp", .40, .43, 0), Place("soic", .78, .31, 0), Place("soic", .17, .75, 1),
    Place("can", .83, .64, 0), Place("can", .83, .80, 0), Place("header", .42, .91, 0),
    Place("jack", .145, .20, 0), Place("crystal", .40, .67, 0), Place("led", .61, .13, 0),
    Place("led", .71, .13, 0), Place("cap", .15, .41, 1), Place("cap", .15, .53, 1),
    Place("res", .30, .15, 0), Place("res", .40, .15, 0), Place("res", .50, .15, 0),
    Place("cap", .615, .27, 1), Place("cap", .615, .38, 1), Place("res", .615, .49, 1),
    Place("res", .36, .79, 0), Place("cap", .55, .66, 0), Place("res", .47, .79, 0),
    Place("cap", .58, .78, 1), Place("res", .74, .53, 0), Place("tant", .685, .66, 0),
    Place("cap", .74, .45, 0),
)
# fmt: on


@lru_cache(maxsize=64)
def draw_part(kind: str, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw a part from above, upright, at `scale` pixels per design pixel.

    Returns uint8 [k, k, 4], BGR and height, and the cover 0 or 255, uint8 [k, k]. Both are shared:
    do not write to them.
    """
    bars = KINDS[kind]
    half = math.ceil(scale * _reach(bars) * 1.42) + 2  # 1.42: the part fits however it is turned
    layers = np.zeros((2 * half, 2 * half, 4), np.uint8)
    cover = np.zeros((2 * half, 2 * half), np.uint8)
    for bar in bars:
        x = half + bar.x * scale
        y = half + bar.y * scale
        fill_box(layers, x, y, bar.width * scale, bar.height * scale, (*bar.colour, bar.top))
        fill_box(cover, x, y, bar.width * scale, bar.height * scale, (255,))
    if kind == "can":
        _draw_can(layers, half, scale)
    for row, text in enumerate(_LABELS.get(kind, ())):
        x = half - len(text) * 3.7 * scale
        y = half + (12 * row + 1) * scale
        print_text(layers, text, x, y, 0.34 * scale, (112, 112, 110))
    return layers, cover


def _reach(bars: list[Bar]) -> float:
    """Return how far the bars extend from the part's centre along x or y."""
    reach = 0.0
    for bar in bars:
        reach = max(reach, abs(bar.x) + bar.width / 2, abs(bar.y) + bar.height / 2)
    return reach


def _draw_can(layers: np.ndarray, half: int, scale: float) -> None:
    """Draw the round can of an electrolytic capacitor, with its dark segment."""
    centre = (half, half)
    cv2.circle(layers, centre, round(18 * scale), (150, 152, 153, 17), -1)
    cv2.circle(layers, centre, round(16 * scale), (192, 194, 195, 20), -1)
    axes = (round(16 * scale), round(16 * scale))
    cv2.ellipse(layers, centre, axes, 0, 115, 245, (44, 42, 42, 20), -1)


def fill_box(
    canvas: np.ndarray, x: float, y: float, width: float, height: float, colour: Sequence[float]
) -> None:
    """Fill an upright rectangle about (x, y) of a canvas [h, w] or [h, w, channels]."""
    first = (round(x - width / 2), round(y - height / 2))
    last = (round(x + width / 2), round(y + height / 2))
    cv2.rectangle(canvas, first, last, colour, -1)


def print_text(
    canvas: np.ndarray, text: str, x: float, y: float, size: float, colour: Colour
) -> None:
    """Print text onto the BGR of a canvas [h, w, 4] and leave its height as it is."""
    # Through a mask: when it draws text, OpenCV 5 takes a fourth channel for transparency.
    ink = np.zeros(canvas.shape[:2], np.uint8)
    place = (round(x), round(y))
    cv2.putText(ink, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, (255,), 1)
    canvas[ink > 127, :3] = colour
