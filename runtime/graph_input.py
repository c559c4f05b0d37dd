"""What the graphs of a bundle take, and how the manifest states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from flawline.runtime.image import Geometry, Image, prepare, resize
from flawline.runtime.source_frame import LARGEST_SIDE, SourceFrame
from flawline.runtime.strict_json import SchemaError, StrictReader, one_line

# The key of the manifest that states the camera's frames.
SOURCE = "source"


@dataclass(frozen=True)
class GraphInput:
    """What the graphs of a bundle take: prepared images, or with `source` frames of a camera.

    As text it is such as "256x256 stretch" or "1920x1080:bgr to 256x256 stretch".
    """

    geometry: Geometry
    source: SourceFrame | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        if self.source is None:
            return self.geometry.height, self.geometry.width, 3
        return self.source.shape

    def __str__(self) -> str:
        text = f"{self.geometry.width}x{self.geometry.height} {self.geometry.kind}"
        if self.source is None:
            return text
        return f"{self.source} to {text}"

    def of_frame(self, frame: npt.NDArray[Any]) -> Image:
        """Return the input for a frame of a camera, uint8 [h, w, 3] BGR or [h, w].

        Raises ValueError for another dtype or shape, and SourceError, which is one, for a frame
        that is not of the `source`; see `SourceFrame.frame_of`.
        """
        if self.source is None:
            return prepare(frame, self.geometry)
        return self.source.frame_of(frame)

    def of_image(self, image: Image) -> Image:
        """Return the input for an image of a data set, of any size, to compare graphs on.

        Raises SourceError for colours where the camera is monochrome.
        """
        if self.source is None:
            return prepare(image, self.geometry)
        return self.source.frame_of(resize(image, self.source.height, self.source.width))

    def prepared(self, image: Image) -> Image:
        """Return what `prepare` makes of `of_image`: uint8 [H, W, 3] BGR. Raises SourceError."""
        if self.source is None:
            return prepare(image, self.geometry)
        return prepare(self.source.picture(self.of_image(image)), self.geometry)

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
