"""The inspected area of a camera's frames as a user draws it: polygons and mask images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flawline.os_errors import reason_of
from flawline.runtime.inspected_area import AreaError, AreaMask, InspectedArea
from flawline.runtime.strict_json import SchemaError, StrictReader, has_type, parse_json
from flawline.train.data.masks import decode_mask

_POINTS = re.compile(r"[-0-9., ]+")
_POINT = re.compile(r"([0-9]{1,5}),([0-9]{1,5})")
POINTS_EXAMPLE = '"0,0 640,0 640,400"'
FILE_EXAMPLE = '{"polygons": [[[0, 0], [640, 0], [640, 400]]]}'

Point = tuple[int, int]


@dataclass(frozen=True)
class Shape:
    """Polygons, or the pixels of a mask image, in the pixels of a camera's frame.

    `origin` is what the user gave. A polygon has at least 3 corners (x, y), and `size` is the
    height and width of the frame where the shape states it.
    """

    origin: str
    polygons: tuple[tuple[Point, ...], ...] = ()
    drawn: InspectedArea | None = None
    size: tuple[int, int] | None = None

    def mask(self, height: int, width: int) -> AreaMask:
        """Return the pixels of the shape in a frame: bool [height, width].

        The border of a polygon belongs to it. Raises AreaError for a frame of another size, and for
        a corner outside of it.
        """
        if self.size is not None and self.size != (height, width):
            raise AreaError(
                f"{self.origin}: is for frames of {self.size[1]}x{self.size[0]}, and the images "
                f"are {width}x{height}; draw it on one of the images"
            )
        if self.drawn is not None:
            return self.drawn.mask
        canvas = np.zeros((height, width), np.uint8)
        for polygon in self.polygons:
            for x, y in polygon:
                if x > width or y > height:
                    raise AreaError(
                        f"{self.origin}: the corner {x},{y} is outside of the images, which are "
                        f"{width}x{height}; draw it on one of the images"
                    )
            cv2.fillPoly(canvas, [np.array(polygon, np.int32)], 1)
        return canvas > 0


@dataclass(frozen=True)
class AreaDrawing:
    """The shapes to inspect, all of a frame without any, and those to leave out of them."""

    include: tuple[Shape, ...] = ()
    exclude: tuple[Shape, ...] = ()

    def area(self, height: int, width: int) -> InspectedArea:
        """Return the inspected area of frames of a size. Raises AreaError."""
        mask = np.full((height, width), not self.include)
        for shape in self.include:
            mask |= shape.mask(height, width)
        for shape in self.exclude:
            mask &= ~shape.mask(height, width)
        if not mask.any():
            raise AreaError("--include and --exclude leave no pixel to inspect; draw a larger area")
        return InspectedArea.of_mask(mask)


def parse_shape(text: str) -> Shape:
    """Read a polygon "x,y x,y x,y", a JSON file of polygons, or a mask image.

    Raises AreaError, and DataError for a mask image that cannot be read.
    """
    if _POINTS.fullmatch(text):
        return Shape(text, (_polygon(text),))
    path = Path(text)
    if path.suffix.lower() == ".json":
        return _shape_of_file(path)
    mask = decode_mask(path)
    if not mask.any():
        raise AreaError(f"{path}: has no pixel above 0; paint the area white")
    return Shape(text, drawn=InspectedArea.of_mask(mask), size=mask.shape)


def _polygon(text: str) -> tuple[Point, ...]:
    points = []
    for word in text.split():
        match = _POINT.fullmatch(word)
        if match is None:
            raise AreaError(f"{text!r}: {word!r} is no corner x,y; write {POINTS_EXAMPLE}")
        points.append((int(match[1]), int(match[2])))
    if len(points) < 3:
        raise AreaError(f"{text!r}: a polygon has at least 3 corners; write {POINTS_EXAMPLE}")
    return tuple(points)


def _shape_of_file(path: Path) -> Shape:
    try:
        reader = StrictReader(parse_json(path.read_bytes()))
        size = None
        if reader.has("width") or reader.has("height"):
            size = (reader.take("height", int), reader.take("width", int))
        polygons = tuple(_corners(value) for value in reader.take("polygons", list))
        reader.finish()
    except OSError as error:
        raise AreaError(f"{path}: cannot be read ({reason_of(error)}); check the path") from error
    except SchemaError as error:
        raise AreaError(f"{path}: {error}; write {FILE_EXAMPLE}") from error
    if not polygons:
        raise AreaError(f"{path}: there is no polygon; write {FILE_EXAMPLE}")
    return Shape(str(path), polygons, size=size)


def _corners(value: Any) -> tuple[Point, ...]:
    """Return the corners of a polygon of a file. Raises SchemaError."""
    if not isinstance(value, list) or len(value) < 3:
        raise SchemaError("a polygon is not a list of at least 3 corners")
    return tuple(_corner(point) for point in value)


def _corner(point: Any) -> Point:
    if not isinstance(point, list) or len(point) != 2:
        raise SchemaError("a corner is not a pair [x, y]")
    for coordinate in point:
        if not has_type(coordinate, int) or not 0 <= coordinate <= 2**16:
            raise SchemaError("a coordinate is not a whole number from 0 on")
    return point[0], point[1]


def drawing_of(include: Sequence[Shape], exclude: Sequence[Shape]) -> AreaDrawing | None:
    """Return the drawing of shapes; None without any."""
    if not include and not exclude:
        return None
    return AreaDrawing(tuple(include), tuple(exclude))
