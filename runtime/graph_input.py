"""What the graphs of a bundle take, how a frame becomes it, and how the manifest states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from flawline.runtime.drift.reading import Reading
from flawline.runtime.find_part import Pose
from flawline.runtime.fixture import Fixture
from flawline.runtime.image import (
    PADDING_BGR,
    Geometry,
    Image,
    Map,
    check_image,
    prepare,
    prepare_area,
    resize,
)
from flawline.runtime.inspected_area import AreaError, AreaMask, InspectedArea
from flawline.runtime.source_frame import LARGEST_SIDE, SourceFrame
from flawline.runtime.strict_json import SchemaError, StrictReader, one_line
from flawline.runtime.tiles import TileGrid, Tiling, grid_geometry

# The key of the manifest that states the camera's frames.
SOURCE = "source"


class Laid(NamedTuple):
    """A prepared frame, and what else is known of it.

    `pose` is how the part lay in the frame, if a fixture has laid it, and `reading` what was read
    for the check of drift, if there is one.
    """

    image: Image
    pose: Pose | None = None
    reading: Reading | None = None


@dataclass(frozen=True)
class GraphInput:
    """What the graphs of a bundle take: prepared images, their tiles, or with `source` frames.

    `geometry` is that of one input of the graph. With `tiles`, a frame is prepared to the larger
    `frame_geometry`, and cut into several inputs. Without `area`, all of a frame is inspected. With
    `fixture`, the part is first laid as in its reference picture, so that all others are places on
    that. As text it is such as "256x256 stretch" or "1920x1080:bgr to 256x256 stretch". Raises
    ValueError for a source with one of the others, for a fixture and an area of different sizes,
    and for what `grid_geometry` refuses.
    """

    geometry: Geometry
    source: SourceFrame | None = None
    tiles: Tiling | None = None
    area: InspectedArea | None = None
    fixture: Fixture | None = None

    def __post_init__(self) -> None:
        if self.source is not None:
            if self.tiles is not None or self.area is not None:
                raise ValueError("a graph that takes frames inspects all of them at once, untiled")
            if self.fixture is not None:
                raise ValueError("a graph that takes frames takes them as they lie, unturned")
        if self.area is not None and self.fixture is not None:
            self.area.require_size(self.fixture.height, self.fixture.width)
        if self.tiles is not None:
            grid_geometry(self.tiles, self.geometry)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input of the graph."""
        if self.source is None:
            return self.geometry.height, self.geometry.width, 3
        return self.source.shape

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """The shape of a frame as `of_frame` returns it; that of an input if it is not tiled."""
        if self.source is None:
            return self.frame_geometry.height, self.frame_geometry.width, 3
        return self.source.shape

    @cached_property
    def frame_geometry(self) -> Geometry:
        """How a frame is prepared, and what its map is on: with tiles, their grid."""
        if self.tiles is None:
            return self.geometry
        return grid_geometry(self.tiles, self.geometry)

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the map of a frame, if the graph gives maps."""
        return self.frame_geometry.height, self.frame_geometry.width

    @cached_property
    def grid(self) -> TileGrid | None:
        """The tiles of a prepared frame; None if it is not tiled."""
        if self.tiles is None:
            return None
        return TileGrid(self.tiles, self.geometry, self.inspected_cells)

    @property
    def inputs_per_frame(self) -> int:
        """How many inputs of the graph a frame becomes."""
        return 1 if self.grid is None else len(self.grid)

    @cached_property
    def inspected_cells(self) -> AreaMask | None:
        """Which pixels of a prepared frame, and of its map, are inspected; None if all are.

        Bool [height, width] of `frame_geometry`.
        """
        inspected = self._inspected
        if inspected is None:
            return None
        cells = prepare_area(inspected, self.frame_geometry)
        if not cells.any():
            remedies = []
            if self.area is not None:
                remedies.append("draw a larger one")
            if self.fixture is not None:
                remedies.append("allow the fixture less turn and shift")
            raise AreaError(
                f"the inspected area has no place for one pixel of the {self.frame_geometry.width}x"
                f"{self.frame_geometry.height} that a frame is resized to; {', or '.join(remedies)}"
            )
        return cells

    @property
    def _inspected(self) -> AreaMask | None:
        """Which pixels of a frame, laid by the fixture if there is one, are inspected."""
        if self.fixture is None:
            return None if self.area is None else self.area.mask
        if self.area is None:
            return self.fixture.inspected
        return self.area.mask & self.fixture.inspected

    @property
    def frame_size(self) -> tuple[int, int] | None:
        """The only height and width that frames may have; None if they may have any."""
        if self.source is not None:
            return self.source.height, self.source.width
        if self.area is not None:
            return self.area.height, self.area.width
        if self.fixture is not None:
            return self.fixture.height, self.fixture.width
        return None

    def __str__(self) -> str:
        text = f"{self.geometry.width}x{self.geometry.height} {self.geometry.kind}"
        if self.tiles is not None:
            text = f"{text}, {self.tiles}"
        if self.area is not None:
            text = f"{text}, {self.area}"
        if self.fixture is not None:
            text = f"{text}, fixture"
        if self.source is None:
            return text
        return f"{self.source} to {text}"

    def of_frame(self, frame: npt.NDArray[Any]) -> Image:
        """Return a prepared frame of a camera, uint8 [h, w, 3] BGR or [h, w].

        It is the input of the graph, or with tiles what is cut into several. Raises ValueError for
        another dtype or shape, SourceError, which is one, for a frame that is not of the `source`
        (see `SourceFrame.frame_of`), AreaError, which is one, for a size that is not that of the
        `area`, and FixtureError, which is one, where the part is not found.
        """
        made = self.of_camera(frame)
        return made.image if isinstance(made, Laid) else made

    def of_camera(self, frame: npt.NDArray[Any]) -> Image | Laid:
        """Return `of_frame`, with a fixture together with the pose. Raises the errors of it."""
        if self.source is not None:
            return self.source.frame_of(frame)
        if self.fixture is None:
            return self._prepared(frame)
        pose = self.fixture.require(frame)
        return Laid(self._prepared(self.fixture.align(frame, pose)), pose)

    def of_image(self, image: Image) -> Image:
        """Return `of_frame` for an image of a data set, of any size, to compare graphs on.

        With a fixture, a part that is not found is laid by the best match. Raises SourceError for
        colours where the camera is monochrome, AreaError, and FixtureError for another size.
        """
        if self.source is None:
            return self._prepared(self._laid(image))
        return self.source.frame_of(resize(image, self.source.height, self.source.width))

    def prepared(self, image: Image) -> Image:
        """Return what `prepare` makes of `of_image`: uint8 [H, W, 3] BGR.

        The size is that of `frame_geometry`. Raises the errors of `of_image`.
        """
        if self.source is None:
            return self.of_image(image)
        return prepare(self.source.picture(self.of_image(image)), self.geometry)

    def _laid(self, image: Image) -> Image:
        if self.fixture is None:
            return image
        return self.fixture.align(image, self.fixture.find(image))

    def _prepared(self, image: npt.NDArray[Any]) -> Image:
        """Prepare an image to the frame's geometry, and paint what is not inspected."""
        if self.area is None and self.fixture is None:
            return prepare(image, self.frame_geometry)
        check_image(image)
        if self.area is not None:
            self.area.require_size(*image.shape[:2])
        prepared = prepare(image, self.frame_geometry)
        prepared[self._painted_cells] = PADDING_BGR
        return prepared

    @cached_property
    def _painted_cells(self) -> AreaMask:
        cells = self.inspected_cells
        assert cells is not None
        return ~cells

    def suppressed(self, anomaly_map: Map) -> Map:
        """Return a map of a frame with its lowest inspected value where nothing is inspected.

        `anomaly_map` is float32 [height, width] of `frame_geometry`, or [0, 0] without a map. So
        the largest value of the map is one of the inspected area.
        """
        cells = self.inspected_cells
        if cells is None or anomaly_map.size == 0:
            return anomaly_map
        lowest = np.min(anomaly_map, where=cells, initial=np.inf)
        return np.where(cells, anomaly_map, lowest)

    def map_of_frame(
        self, anomaly_map: Map, frame: npt.NDArray[Any], interpolation: int = cv2.INTER_NEAREST
    ) -> Map:
        """Return the map of a frame where the part lies in it, on a grid of the same geometry.

        `anomaly_map` is float32 [height, width] of `frame_geometry`. Without a fixture it is
        returned as it is. Otherwise the part is found again, and places that have no value, or are
        not inspected, are NaN. Raises FixtureError for a frame of another size.
        """
        if self.fixture is None:
            return anomaly_map
        cells = self.inspected_cells
        assert cells is not None
        anomaly_map = np.where(cells, anomaly_map, np.float32(np.nan))
        pose = self.fixture.find(frame)
        return self.fixture.map_of_frame(anomaly_map, pose, self.frame_geometry, interpolation)

    def picture(self, frame: Image) -> Image:
        """Return a frame as it is painted: uint8 [h, w, 3] BGR or [h, w] mono."""
        if self.source is None:
            return frame
        return self.source.picture(frame)


def geometry_from_json(reader: StrictReader) -> Geometry:
    """Take the geometry out of a manifest. Raises SchemaError."""
    fields = reader.take("geometry", dict)
    # 64.0 would pass the checks of Geometry and fail as a shape much later.
    for value in fields.values():
        if isinstance(value, float):
            reader.refuse("geometry: sizes are whole numbers")
        if isinstance(value, int) and value > LARGEST_SIDE:
            reader.refuse(f"geometry: a size is above {LARGEST_SIDE} pixels")
    try:
        return Geometry(**fields)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"geometry: {one_line(error)}") from error


def source_from_json(content: Mapping[str, Any] | None) -> SourceFrame | None:
    """Read the frames that a manifest states; None if it states none. Raises SchemaError."""
    if content is None:
        return None
    reader = StrictReader(content, SOURCE)
    height = reader.take("height", int)
    width = reader.take("width", int)
    layout = reader.take("layout", str)
    reader.finish()
    try:
        return SourceFrame(height, width, layout)
    except ValueError as error:
        raise SchemaError(f"{SOURCE}: {one_line(error)}") from error
