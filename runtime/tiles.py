"""Tiles: a large image is judged in overlapping parts, whose scores and maps are joined again.

The image is first resized to the grid of the tiles, as `prepare()` resizes to the input of a
network. Each tile is a part of that, of the size of the network's input. So the tiles of an image
need one resizing, and their maps are joined on the same grid, without another one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.runtime.image import Geometry, Image, Map
from flawline.runtime.strict_json import SchemaError, StrictReader, one_line

# The key of the manifest that states the tiles.
TILES = "tiles"
DEFAULT_OVERLAP = 0.1
LARGEST_OVERLAP = 0.5
MOST_TILES = 256
# The overlap is rounded up to so many pixels. A tile then begins where a cell of a feature map with
# a stride of up to so many pixels does, and the features in the middle of a tile are those that the
# same network computes for a larger image.
ALIGNMENT = 16
# As a camera's frame, an image that is prepared for tiles has at most so many pixels on a side.
LARGEST_GRID = 16384
_TEXT = re.compile(r"([0-9]{1,3})x([0-9]{1,3})")


@dataclass(frozen=True)
class Tiling:
    """How many tiles an image is cut into, and which share of a tile overlaps with the next one.

    Raises ValueError for fewer than 2 tiles, more than MOST_TILES, or an overlap that is not from 0
    to LARGEST_OVERLAP.
    """

    columns: int
    rows: int
    overlap: float = DEFAULT_OVERLAP

    def __post_init__(self) -> None:
        count = self.columns * self.rows
        if min(self.columns, self.rows) < 1 or not 2 <= count <= MOST_TILES:
            raise ValueError(
                f"{self.columns}x{self.rows} tiles are not from 2 to {MOST_TILES} in all"
            )
        # Written so that NaN is refused.
        if not 0 <= self.overlap <= LARGEST_OVERLAP:
            raise ValueError(f"the overlap of tiles is not from 0 to {LARGEST_OVERLAP}")

    def __str__(self) -> str:
        return f"{self.columns}x{self.rows} tiles, overlap {self.overlap:g}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields for a manifest or a checkpoint."""
        return {"columns": self.columns, "rows": self.rows, "overlap": self.overlap}


def parse_tiles(text: str, overlap: float = DEFAULT_OVERLAP) -> Tiling:
    """Read COLUMNSxROWS. Raises ValueError."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not COLUMNSxROWS, such as 3x2")
    return Tiling(int(match[1]), int(match[2]), overlap)


def tiling_from_json(content: Mapping[str, Any] | None) -> Tiling | None:
    """Read the tiles that a manifest states; None if it states none. Raises SchemaError."""
    if content is None:
        return None
    reader = StrictReader(content, TILES)
    columns = reader.take("columns", int)
    rows = reader.take("rows", int)
    overlap = reader.take("overlap", float)
    reader.finish()
    try:
        return Tiling(columns, rows, overlap)
    except ValueError as error:
        raise SchemaError(f"{TILES}: {one_line(error)}") from error


@dataclass(frozen=True)
class _Axis:
    """The tiles along one axis: where each begins, and how much of it the next one shares."""

    side: int
    starts: tuple[int, ...]
    shared: int

    @property
    def length(self) -> int:
        return self.starts[-1] + self.side

    def weights(self, number: int) -> Map:
        """Return the weights of a tile along this axis: float32 [side].

        They rise and fall linearly where tiles overlap, and the weights of all tiles at a place add
        up to 1.
        """
        weights = np.ones(self.side, np.float32)
        rising = (np.arange(self.shared, dtype=np.float32) + 0.5) / max(self.shared, 1)
        if number > 0:
            weights[: self.shared] = rising
        if number < len(self.starts) - 1:
            weights[self.side - self.shared :] = 1 - rising
        return weights


def _axis(count: int, side: int, overlap: float) -> _Axis:
    # Rounding must not add a step to an overlap that is a whole number of them.
    steps = math.ceil(overlap * side / ALIGNMENT - 1e-9)
    shared = min(steps * ALIGNMENT, side // 2)
    starts = tuple(number * (side - shared) for number in range(count))
    return _Axis(side, starts, shared)


class TileGrid:
    """The tiles of an image that was prepared to their grid.

    `geometry` is that of the grid. `cells` tells which cells of the grid are inspected, bool
    [height, width]; a tile without such a cell is left out. None inspects all.
    """

    def __init__(
        self, tiling: Tiling, tile: Geometry, cells: npt.NDArray[np.bool_] | None = None
    ) -> None:
        self._rows = _axis(tiling.rows, tile.height, tiling.overlap)
        self._columns = _axis(tiling.columns, tile.width, tiling.overlap)
        self.geometry = grid_geometry(tiling, tile)
        self._places: list[tuple[slice, slice]] = []
        self._weights: list[Map] = []
        for row, top in enumerate(self._rows.starts):
            for column, left in enumerate(self._columns.starts):
                place = (slice(top, top + tile.height), slice(left, left + tile.width))
                if cells is not None and not cells[place].any():
                    continue
                self._places.append(place)
                weights = self._rows.weights(row)[:, None] * self._columns.weights(column)
                self._weights.append(weights)

    def __len__(self) -> int:
        return len(self._places)

    def tile(self, prepared: Image, number: int) -> Image:
        """Return a tile of a prepared image, uint8 [H, W, 3]; it shares the pixels."""
        return prepared[self._places[number]]

    def cut(self, prepared: Image) -> Image:
        """Return the tiles of a prepared image: uint8 [tiles, H, W, 3]."""
        return np.stack([prepared[place] for place in self._places])

    def place(self, number: int) -> tuple[slice, slice]:
        """Return the rows and the columns of the grid that a tile takes."""
        return self._places[number]

    def weights(self, number: int) -> Map:
        """Return what the map of a tile counts at each of its places: float32 [H, W].

        Where two tiles overlap, the weight goes over from one to the other linearly, so that the
        joined map has no seam. Elsewhere it is 1.
        """
        return self._weights[number]


class JoinedTiles:
    """The score and the map of a frame, from those of its tiles as they come.

    The `score` is the largest one of a tile, and NaN if one is NaN. `anomaly_map` is float32
    [height, width] of the grid, or [0, 0] if the tiles have no maps.
    """

    def __init__(self, grid: TileGrid) -> None:
        self._grid = grid
        self.score = -math.inf
        self.anomaly_map: Map = np.zeros((0, 0), np.float32)

    def add(self, number: int, score: float, tile_map: Map) -> None:
        """Add the score and the map, float32 [H, W] or [0, 0], of a tile."""
        # As opposed to max(), it keeps NaN.
        self.score = float(np.maximum(self.score, score))
        if not tile_map.size:
            return
        if not self.anomaly_map.size:
            geometry = self._grid.geometry
            self.anomaly_map = np.zeros((geometry.height, geometry.width), np.float32)
        weighted = tile_map * self._grid.weights(number)
        self.anomaly_map[self._grid.place(number)] += weighted


def grid_geometry(tiling: Tiling, tile: Geometry) -> Geometry:
    """Return the geometry of the grid for tiles of a geometry.

    Raises ValueError for a geometry that crops, and for a grid that is too large.
    """
    if tile.kind == "shorter-crop":
        raise ValueError(
            "tiles need all of the image, which the geometry shorter-crop does not give; choose "
            "--geometry stretch or letterbox"
        )
    height = _axis(tiling.rows, tile.height, tiling.overlap).length
    width = _axis(tiling.columns, tile.width, tiling.overlap).length
    if max(height, width) > LARGEST_GRID:
        raise ValueError(
            f"{tiling} of {tile.width}x{tile.height} need {width}x{height} pixels, and a side "
            f"has at most {LARGEST_GRID}; give fewer tiles or a smaller --size"
        )
    return Geometry(tile.kind, height, width)
