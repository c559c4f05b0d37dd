"""From a reference picture and a region to a fixture."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from flawline.runtime.find_part import COARSER, halvings, small_copy
from flawline.runtime.fixture import Fixture, FixtureError, Region
from flawline.runtime.image import Image, check_image


def fixture_of(image: npt.NDArray[Any], region: Region, turn: float, shift: float) -> Fixture:
    """Return the fixture of a reference picture, uint8 [h, w, 3] BGR or [h, w].

    `region` is (x, y, width, height). Its edges are rounded to whole pixels of the small copies
    in which parts are found. Raises FixtureError for values that do not fit together, and for a
    region without edges.
    """
    check_image(image)
    height, width = image.shape[:2]
    try:
        return _fixture_of(image, region, turn, shift)
    except ValueError as error:
        raise FixtureError(f"the fixture of a picture of {width}x{height}: {error}") from error


def _fixture_of(image: Image, region: Region, turn: float, shift: float) -> Fixture:
    height, width = image.shape[:2]
    count = halvings(region[2], region[3])
    unit = 1 << (count + COARSER)
    x, columns = _rounded(region[0], region[2], width, unit)
    y, rows = _rounded(region[1], region[3], height, unit)
    small = small_copy(image, count)
    picture = small[y >> count : (y + rows) >> count, x >> count : (x + columns) >> count]
    return Fixture(height, width, (x, y, columns, rows), turn, shift, picture.tobytes())


def _rounded(start: int, length: int, side: int, unit: int) -> tuple[int, int]:
    """Round the ends of a part of a side to multiples of `unit`; return its start and length."""
    if start < 0 or start + length > side:
        raise ValueError(f"{start} to {start + length} is not within 0 to {side}")
    first = round(start / unit)
    last = min(round((start + length) / unit), side // unit)
    return first * unit, (last - first) * unit
