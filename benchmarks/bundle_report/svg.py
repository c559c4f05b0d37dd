"""A drawing in SVG, built from lines, boxes and texts. Colours come from the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Point = tuple[float, float]


class Drawing:
    """An SVG image of `width` x `height` units with a label for readers who cannot see it.

    `css` is always the CSS class that gives an element its colour, and `name` that of the whole
    drawing. The origin is at the top left.
    """

    def __init__(self, width: float, height: float, label: str, name: str = "") -> None:
        self.width = width
        self.height = height
        self.label = label
        self.name = name
        self._elements: list[str] = []

    def add(self, element: str) -> None:
        """Add an element that is already SVG."""
        self._elements.append(element)

    def text(self, x: float, y: float, text: str, anchor: str = "start", css: str = "") -> None:
        """Write one line; `anchor` is the part of it at (x, y): start, middle or end."""
        position = f"x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'"
        self.add(f"<text {position} class='{css}'>{escape(text)}</text>")

    def vertical_text(self, x: float, y: float, text: str) -> None:
        """Write one line upwards, centred on (x, y)."""
        place = f"translate({x:g} {y:g}) rotate(-90)"
        self.add(f"<text transform='{place}' text-anchor='middle'>{escape(text)}</text>")

    def line(self, css: str, start: Point, end: Point) -> None:
        x1, y1 = start
        x2, y2 = end
        ends = f"x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'"
        self.add(f"<line class='{css}' {ends}/>")

    def box(
        self, css: str, x: float, y: float, width: float, height: float, fill: str = ""
    ) -> None:
        """Fill a rectangle whose top left corner is (x, y).

        `fill` is for what a style sheet cannot name, such as a gradient of this drawing.
        """
        place = f"x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}'"
        if fill:
            place += f" fill='{fill}'"
        self.add(f"<rect class='{css}' {place}/>")

    def circle(self, css: str, centre: Point, radius: float) -> None:
        x, y = centre
        self.add(f"<circle class='{css}' cx='{x:.1f}' cy='{y:.1f}' r='{radius:g}'/>")

    def polyline(self, css: str, points: Sequence[Point]) -> None:
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.add(f"<polyline class='{css}' points='{places}'/>")

    def render(self) -> str:
        """Return the whole image as one SVG element."""
        size = f"viewBox='0 0 {self.width:g} {self.height:g}'"
        opening = f"<svg class='{self.name}' {size} role='img' aria-label='{escape(self.label)}'>"
        return opening + "".join(self._elements) + "</svg>"
