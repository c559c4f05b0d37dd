"""Where a part is anomalous: the regions of an anomaly map above the pixel threshold.

The regions are found on the map as it is, on the grid of the model's input, and their boxes are
then scaled to the source image. So the work does not grow with the source: a frame of 12 megapixels
costs what one of the model's size costs, and a box is as exact as the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from flawline.commands import command_line
from flawline.runtime.bundle import Bundle
from flawline.runtime.image import Geometry, Map

# A map of noise has thousands of regions, which no one reads.
MOST_REGIONS = 20
MOST_LISTED = 1000


@dataclass(frozen=True)
class RegionSettings:
    """Which regions are given.

    Those with an area below `min_area`, in pixels of the source image, are left out, and of the
    others at most the `most` with the highest peaks are listed. `mm_per_pixel` is the size of a
    pixel of the source image on the part; None where it is not known. Raises ValueError for a value
    out of range.
    """

    min_area: float = 0.0
    most: int = MOST_REGIONS
    mm_per_pixel: float | None = None

    def __post_init__(self) -> None:
        # Written so that NaN is refused.
        if not 0 <= self.min_area < float("inf"):
            raise ValueError("the smallest area of a region is not 0 or more")
        if not 0 <= self.most <= MOST_LISTED:
            raise ValueError(
                f"the number of regions that are listed is not from 0 to {MOST_LISTED}"
            )
        if self.mm_per_pixel is not None and not 0 < self.mm_per_pixel < float("inf"):
            raise ValueError("the millimetres per pixel are not above 0")


@dataclass(frozen=True)
class Region:
    """A connected region of the map, in pixels of the source image.

    `box` is (x, y, width, height), within the image. `area` is the number of pixels. `peak` is the
    largest value of the map in the region, at the pixel `peak_at`, which is (x, y).
    """

    box: tuple[int, int, int, int]
    area: int
    peak: float
    peak_at: tuple[int, int]


@dataclass(frozen=True)
class Regions:
    """The regions of a map, those with the highest peaks first, and the number of all.

    `largest` is the one with the largest area, which need not be among those that are listed.
    `mm_per_pixel` is the size of a pixel of the source image on the part, if it is known.
    """

    listed: tuple[Region, ...] = ()
    total: int = 0
    largest: Region | None = None
    mm_per_pixel: float | None = None


def regions_missing(bundle: Bundle) -> str | None:
    """Say why a bundle gives no regions, with the remedy; None if it gives them."""
    if not bundle.has_map:
        return (
            "the bundle gives no anomaly maps; build it with --outputs map, of a method that has "
            "maps"
        )
    if bundle.calibration.pixels is not None:
        return None
    command = command_line("calibrate", "--bundle", bundle.path, "--images", "GOOD_PARTS")
    return f"the bundle has no pixel threshold, which older versions did not set; set it: {command}"


@dataclass(frozen=True)
class _Axis:
    """One axis of the map's grid in the source image: its inspected cells, and where they lie.

    Cell `first` begins at the source pixel `offset`, and each cell is `scale` source pixels long.
    """

    first: int
    last: int
    offset: float
    scale: float
    length: int

    def edges(self, start: int, stop: int) -> tuple[int, int]:
        """Return the source pixels from and up to which the cells `start` to `stop` lie."""
        low = int(np.floor(self.offset + start * self.scale + 1e-6))
        high = int(np.ceil(self.offset + stop * self.scale - 1e-6))
        low = min(max(low, 0), self.length - 1)
        return low, min(max(high, low + 1), self.length)

    def middle(self, cell: int) -> int:
        """Return the source pixel in the middle of a cell."""
        place = int(self.offset + (cell + 0.5) * self.scale)
        return min(max(place, 0), self.length - 1)


def find_regions(
    anomaly_map: Map,
    threshold: float,
    geometry: Geometry,
    height: int,
    width: int,
    settings: RegionSettings,
    inspected_cells: npt.NDArray[np.bool_] | None = None,
) -> Regions:
    """Return the connected regions of an anomaly map above a threshold.

    `anomaly_map` is float32 of the size of the geometry, and the source image has `height` x
    `width` pixels. Cells that touch at a corner are connected. Letterbox bars are left out, and
    what the crop left out has no map. So are cells that are not `inspected_cells`, bool of the size
    of the map; None inspects all.
    """
    scaled_height, scaled_width, top, left = geometry.place(height, width)
    rows = _axis(geometry.height, scaled_height, top, height)
    columns = _axis(geometry.width, scaled_width, left, width)
    inspected = anomaly_map[rows.first : rows.last, columns.first : columns.last]
    # A value that is NaN is not above.
    above = (inspected > threshold).astype(np.uint8)
    if inspected_cells is not None:
        above &= inspected_cells[rows.first : rows.last, columns.first : columns.last]
    nothing = Regions(mm_per_pixel=settings.mm_per_pixel)
    if not above.any():
        return nothing
    count, found, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    labels = np.asarray(found, np.int32)
    cell_area = rows.scale * columns.scale
    areas = stats[1:, cv2.CC_STAT_AREA] * cell_area
    # Rounding may leave an area just below its true value.
    numbers = 1 + np.flatnonzero(areas >= settings.min_area - 1e-6)
    if not len(numbers):
        return nothing
    peaks = _peaks(inspected, above, labels, count)
    # Of equal peaks, the upper one comes first.
    order = numbers[np.argsort(-peaks[numbers], kind="stable")]

    def region(number: int) -> Region:
        return _region(inspected, labels, stats[number], number, rows, columns)

    largest = numbers[np.argmax(areas[numbers - 1])]
    listed = tuple(region(int(number)) for number in order[: settings.most])
    return Regions(listed, len(numbers), region(int(largest)), settings.mm_per_pixel)


def _axis(cells: int, scaled: int, start: int, length: int) -> _Axis:
    """Return an axis. The source of `length` pixels is scaled to `scaled`, of which cells begin.

    The first cell is the scaled pixel `start`; a negative one is the size of a bar.
    """
    scale = length / scaled
    if start < 0 or scaled < cells:
        bar = -start
        return _Axis(bar, bar + scaled, 0.0, scale, length)
    return _Axis(0, cells, start * scale, scale, length)


def _peaks(
    values: Map, above: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32], count: int
) -> npt.NDArray[np.float32]:
    """Return the largest value of each region, by its number: float32 [count]."""
    chosen = above.astype(bool)
    peaks = np.full(count, -np.inf, np.float32)
    np.maximum.at(peaks, labels[chosen], values[chosen])
    return peaks


def _region(
    values: Map,
    labels: npt.NDArray[np.int32],
    stats: Sequence[int],
    number: int,
    rows: _Axis,
    columns: _Axis,
) -> Region:
    """Return a region in the source image, from its row of OpenCV's statistics."""
    x, y, width, height, cells = (int(value) for value in stats)
    part = (slice(y, y + height), slice(x, x + width))
    own = np.where(labels[part] == number, values[part], -np.inf)
    row, column = np.unravel_index(int(np.argmax(own)), own.shape)
    left, right = columns.edges(x, x + width)
    top, bottom = rows.edges(y, y + height)
    return Region(
        box=(left, top, right - left, bottom - top),
        area=max(1, round(cells * rows.scale * columns.scale)),
        peak=float(own[row, column]),
        peak_at=(columns.middle(x + int(column)), rows.middle(y + int(row))),
    )
