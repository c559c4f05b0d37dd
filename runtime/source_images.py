"""The sizes of the images that a detector was trained on, and which other sizes it may judge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flawline.runtime.strict_json import StrictReader

# An image is far outside the sizes seen in training where its aspect ratio is beyond their range
# by more than the first factor, or a side beyond its range by more than the second.
ASPECT_FACTOR = 1.5
SIDE_FACTOR = 2.0


@dataclass(frozen=True)
class SourceSizes:
    """The range of sizes of the good images of a data set, before they are resized.

    Heights and widths are in pixels; an aspect ratio is the width divided by the height.
    """

    smallest_height: int
    largest_height: int
    smallest_width: int
    largest_width: int
    smallest_aspect: float
    largest_aspect: float

    @classmethod
    def of(cls, sizes: Iterable[tuple[int, int]]) -> SourceSizes | None:
        """Return the range of these (height, width); None if there are none."""
        different = set(sizes)
        if not different:
            return None
        heights = []
        widths = []
        aspects = []
        for height, width in different:
            heights.append(height)
            widths.append(width)
            aspects.append(width / height)
        return cls(
            smallest_height=min(heights),
            largest_height=max(heights),
            smallest_width=min(widths),
            largest_width=max(widths),
            smallest_aspect=min(aspects),
            largest_aspect=max(aspects),
        )

    def extended(self, other: SourceSizes | None) -> SourceSizes:
        """Return the range that holds both."""
        if other is None:
            return self
        return SourceSizes(
            smallest_height=min(self.smallest_height, other.smallest_height),
            largest_height=max(self.largest_height, other.largest_height),
            smallest_width=min(self.smallest_width, other.smallest_width),
            largest_width=max(self.largest_width, other.largest_width),
            smallest_aspect=min(self.smallest_aspect, other.smallest_aspect),
            largest_aspect=max(self.largest_aspect, other.largest_aspect),
        )

    def fault(self, height: int, width: int) -> str | None:
        """Say that an image is far outside these sizes, with the remedy, or return None.

        Far outside means that its aspect ratio is below the smallest one divided by 1.5 or above
        the largest one times 1.5, or that its height or width is below half of the smallest one or
        above twice the largest one.
        """
        aspect = width / height
        far = (
            _is_beyond(aspect, self.smallest_aspect, self.largest_aspect, ASPECT_FACTOR)
            or _is_beyond(height, self.smallest_height, self.largest_height, SIDE_FACTOR)
            or _is_beyond(width, self.smallest_width, self.largest_width, SIDE_FACTOR)
        )
        if not far:
            return None
        return (
            f"the image is {width}x{height}, far from the sizes that the detector was trained on "
            f"({self.describe()}); check the camera, or pass --accept-size"
        )

    @property
    def one_size(self) -> bool:
        """Whether all images have the same height and width."""
        return (self.smallest_height, self.smallest_width) == (
            self.largest_height,
            self.largest_width,
        )

    def describe(self) -> str:
        """Return the range as text, such as 300x300 to 320x300."""
        smallest = f"{self.smallest_width}x{self.smallest_height}"
        largest = f"{self.largest_width}x{self.largest_height}"
        if smallest == largest:
            return smallest
        return f"{smallest} to {largest}"


def _is_beyond(value: float, smallest: float, largest: float, factor: float) -> bool:
    return value * factor < smallest or value > factor * largest


def sizes_to_json(sizes: SourceSizes | None) -> dict[str, Any] | None:
    """Return the content of `source_sizes` in a manifest or a checkpoint."""
    if sizes is None:
        return None
    return asdict(sizes)


def sizes_from_json(content: Mapping[str, Any] | None) -> SourceSizes | None:
    """Read what `sizes_to_json` returned. Raises SchemaError."""
    if content is None:
        return None
    reader = StrictReader(content, "source_sizes")
    sizes = SourceSizes(
        smallest_height=reader.take("smallest_height", int),
        largest_height=reader.take("largest_height", int),
        smallest_width=reader.take("smallest_width", int),
        largest_width=reader.take("largest_width", int),
        smallest_aspect=reader.take("smallest_aspect", float),
        largest_aspect=reader.take("largest_aspect", float),
    )
    reader.finish()
    rising = (
        0 < sizes.smallest_height <= sizes.largest_height
        and 0 < sizes.smallest_width <= sizes.largest_width
        and 0 < sizes.smallest_aspect <= sizes.largest_aspect
    )
    if not rising:
        reader.refuse("a smallest value is not above 0, or exceeds the largest")
    return sizes
