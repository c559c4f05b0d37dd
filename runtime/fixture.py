"""The fixture of a detector: parts that are turned and shifted are laid as in a reference picture.

Each frame is turned and shifted back before anything else is done with it, in training as on the
camera. So a method that compares places with the same places of good parts works on parts that do
not lie still.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawline import FlawlineError
from flawline.runtime.always_in_frame import pixels_in_every_pose
from flawline.runtime.find_part import (
    COARSER,
    PartFinder,
    Pose,
    gradients,
    halvings,
)
from flawline.runtime.image import Geometry, Image, Map, check_image
from flawline.runtime.source_frame import LARGEST_SIDE
from flawline.runtime.strict_json import SchemaError, StrictReader, one_line

# The key of the manifest that states the fixture.
FIXTURE = "fixture"
SMALLEST_REGION = 48  # pixels, of its shorter side
LARGEST_TURN = 180.0  # degrees
# Below this match, no part is found, whatever the matches of the good images. Another product has
# matches of up to 0.3 with the demo's bearing.
LOWEST_QUALITY = 0.3
# A picture without edges, whose gradients are all below this, cannot be found.
LEAST_GRADIENT = 8.0

Region = tuple[int, int, int, int]


class FixtureError(FlawlineError, ValueError):
    """An image is not of the fixture's frames, or there is no fixture with these values."""


class PartNotFoundError(FixtureError):
    """The part was not found in a frame, or is turned or shifted too far."""


@dataclass(frozen=True)
class Fixture:
    """A picture of a part that lies still, and how far others may be turned and shifted from it.

    Frames have `height` x `width` pixels. `region` is (x, y, width, height), the part of the
    reference picture by which others are found, and `picture` its grey levels as `small_copy`
    returns them, one byte each, row after row. `turn` is the largest angle in degrees and `shift`
    the largest distance of the region's centre in pixels. A part whose match is below `quality`
    is not found. `train.data.reference_picture` makes it. Raises ValueError
    for values that do not fit together.
    """

    height: int
    width: int
    region: Region
    turn: float
    shift: float
    picture: bytes
    quality: float = LOWEST_QUALITY

    def __post_init__(self) -> None:
        if not 0 < min(self.height, self.width) <= max(self.height, self.width) <= LARGEST_SIDE:
            raise ValueError(
                f"a side of {self.width}x{self.height} is not from 1 to {LARGEST_SIDE}"
            )
        x, y, width, height = self.region
        if min(width, height) < SMALLEST_REGION:
            raise ValueError(f"a region of {width}x{height} has a side below {SMALLEST_REGION}")
        if min(x, y) < 0 or x + width > self.width or y + height > self.height:
            raise ValueError(
                f"the region {x},{y},{width},{height} is not within {self.width}x{self.height}"
            )
        unit = 1 << (halvings(width, height) + COARSER)
        if any(value % unit for value in self.region):
            raise ValueError(f"the region {x},{y},{width},{height} is no multiple of {unit}")
        # Written so that NaN is refused.
        if not 0 <= self.turn <= LARGEST_TURN:
            raise ValueError(f"turn={self.turn:g} is not from 0 to {LARGEST_TURN:g} degrees")
        if not 0 <= self.shift <= max(self.height, self.width):
            raise ValueError(f"shift={self.shift:g} is not from 0 to the longer side of the frame")
        if not LOWEST_QUALITY <= self.quality <= 1:
            raise ValueError(f"a match of {self.quality:g} is not from {LOWEST_QUALITY} to 1")
        if len(self.picture) != _pixels(self.region):
            raise ValueError(f"{len(self.picture)} bytes are no picture of {width}x{height}")
        if not gradients(self._picture).max() >= LEAST_GRADIENT:
            raise ValueError(
                f"the region {x},{y},{width},{height} shows nothing to find a part by; choose one "
                f"with edges"
            )

    def __str__(self) -> str:
        x, y, width, height = self.region
        share = self.inspected.mean()
        return (
            f"region {x},{y},{width},{height} of {self.width}x{self.height}, up to "
            f"{self.turn:g} degrees and {self.shift:g} pixels, {share:.0%} inspected"
        )

    @property
    def digest(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the picture."""
        return hashlib.sha256(self.picture).hexdigest()[:12]

    @property
    def _picture(self) -> Image:
        height, width = _small_size(self.region)
        return np.frombuffer(self.picture, np.uint8).reshape(height, width)

    @cached_property
    def _finder(self) -> PartFinder:
        x, y, width, height = self.region
        count = halvings(width, height)
        return PartFinder(self._picture, count, x >> count, y >> count, self.turn, self.shift)

    @property
    def centre(self) -> tuple[float, float]:
        """The centre (x, y) of the region, where the middle of the first pixel is (0, 0)."""
        x, y, width, height = self.region
        return x + (width - 1) / 2, y + (height - 1) / 2

    @cached_property
    def inspected(self) -> npt.NDArray[np.bool_]:
        """Which pixels of an aligned frame are in the frame in every pose within the limits.

        Bool [height, width]. The others come from outside of the frame in some poses, and are
        painted in all of them, so that no score depends on the pose.
        """
        return pixels_in_every_pose(self.height, self.width, self.centre, self.turn, self.shift)

    def find(self, image: npt.NDArray[Any]) -> Pose:
        """Return the pose of the part in a frame, uint8 [h, w, 3] BGR or [h, w], the best one.

        Raises FixtureError for a frame of another size, and ValueError for another dtype or shape.
        """
        check_image(image)
        height, width = image.shape[:2]
        if (height, width) != (self.height, self.width):
            raise FixtureError(
                f"the image is {width}x{height}, and the reference picture of the fixture is "
                f"{self.width}x{self.height}; set the camera to it, or train again with a "
                f"--fixture picture of {width}x{height}"
            )
        return self._finder.find(image)

    def fault(self, pose: Pose) -> str | None:
        """Say that a pose is not that of a part within the limits, or return None."""
        if pose.quality < self.quality:
            return (
                f"the part was not found: its match with the reference picture of the fixture is "
                f"{pose.quality:.2f}, below {self.quality:.2f}"
            )
        if self._finder.beyond(pose):
            return (
                f"the part is turned by {abs(pose.turn):.1f} degrees and shifted by "
                f"{pose.shift:.1f} pixels; the fixture allows {self.turn:g} degrees and "
                f"{self.shift:g} pixels"
            )
        return None

    def require(self, image: npt.NDArray[Any]) -> Pose:
        """Return the pose of the part in a frame.

        Raises PartNotFoundError where it is not found or beyond the limits, and the errors of
        `find`.
        """
        pose = self.find(image)
        fault = self.fault(pose)
        if fault is not None:
            raise PartNotFoundError(fault)
        return pose

    def align(self, image: Image, pose: Pose) -> Image:
        """Return a frame with its part laid as in the reference picture, of the same shape.

        What is outside of the frame is black, and so is what lies beyond all `inspected` rows and
        columns.
        """
        rows, columns = self._inspected_box
        matrix = pose.matrix(self.centre)
        matrix[:, 2] += matrix[:, :2] @ (columns.start, rows.start)
        size = (columns.stop - columns.start, rows.stop - rows.start)
        aligned = np.zeros_like(image)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        cv2.warpAffine(image, matrix, size, dst=aligned[rows, columns], flags=flags)
        return aligned

    @cached_property
    def _inspected_box(self) -> tuple[slice, slice]:
        """The rows and the columns with an inspected pixel; the first ones if there is none."""
        rows = np.flatnonzero(self.inspected.any(1))
        columns = np.flatnonzero(self.inspected.any(0))
        if not len(rows):
            return slice(0, 1), slice(0, 1)
        return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)

    def map_of_frame(
        self, values: Map, pose: Pose, geometry: Geometry, interpolation: int = cv2.INTER_NEAREST
    ) -> Map:
        """Return the map of an aligned frame at its places in the frame, on a grid like its own.

        `values` is float32 of the size of the geometry, to which the aligned frame was prepared,
        NaN on its bars, and so is the result, as if the frame had been prepared. It is NaN where
        the frame has no place in the aligned one.
        """
        scaled_height, scaled_width, top, left = geometry.place(self.height, self.width)
        scale_x = self.width / scaled_width
        scale_y = self.height / scaled_height
        # From the middle of a cell of the grid to its place in the frame.
        to_pixels = np.array(
            [
                [scale_x, 0, scale_x * (left + 0.5) - 0.5],
                [0, scale_y, scale_y * (top + 0.5) - 0.5],
                [0, 0, 1],
            ]
        )
        moving = np.vstack([pose.matrix(self.centre), (0, 0, 1)])
        matrix = np.linalg.inv(to_pixels) @ moving @ to_pixels
        moved = cv2.warpAffine(
            values,
            matrix[:2],
            (geometry.width, geometry.height),
            flags=interpolation,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=float("nan"),
        )
        return np.asarray(moved, np.float32)

    def with_quality_of(self, qualities: Sequence[float]) -> Fixture:
        """Return this fixture, with the smallest match from those of good images.

        It is as far below the lowest one as that is below their median, so that a good part that
        matches worse than all of these is still found. Raises ValueError if a match is too low.
        """
        lowest = min(qualities)
        if lowest < LOWEST_QUALITY:
            raise ValueError(f"the lowest match {lowest:.2f} is below {LOWEST_QUALITY}")
        level = lowest - max(float(np.median(qualities)) - lowest, 0.05)
        return replace(self, quality=round(max(level, LOWEST_QUALITY), 4))

    def to_json(self) -> dict[str, Any]:
        """Return the fields for a manifest or a checkpoint."""
        packed = base64.b64encode(zlib.compress(self.picture, 9)).decode()
        return {
            "height": self.height,
            "width": self.width,
            "region": list(self.region),
            "turn": self.turn,
            "shift": self.shift,
            "quality": self.quality,
            "picture": packed,
        }


def _small_size(region: Region) -> tuple[int, int]:
    """Return the height and width of the picture of a region."""
    _, _, width, height = region
    count = halvings(width, height)
    return height >> count, width >> count


def _pixels(region: Region) -> int:
    height, width = _small_size(region)
    return height * width


def fixture_from_json(content: Mapping[str, Any] | None) -> Fixture | None:
    """Read the fixture that a manifest states; None if it states none. Raises SchemaError."""
    if content is None:
        return None
    reader = StrictReader(content, FIXTURE)
    height = reader.take("height", int)
    width = reader.take("width", int)
    region = reader.take("region", list)
    turn = reader.take("turn", float)
    shift = reader.take("shift", float)
    quality = reader.take("quality", float)
    packed = reader.take("picture", str)
    reader.finish()
    if len(region) != 4 or not all(type(value) is int for value in region):
        reader.refuse(f"region is {one_line(repr(region))}, not four whole numbers")
    x, y, columns, rows = region
    if min(x, y, columns, rows) < 0 or max(region) > LARGEST_SIDE:
        reader.refuse(f"region: a number is not from 0 to {LARGEST_SIDE}")
    # A few bytes may stand for gigabytes: only what the region needs is unpacked.
    unpacker = zlib.decompressobj()
    try:
        data = base64.b64decode(packed, validate=True)
        picture = unpacker.decompress(data, _pixels((x, y, columns, rows)) + 1)
        return Fixture(height, width, (x, y, columns, rows), turn, shift, picture, quality)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise SchemaError(f"{FIXTURE}: {one_line(error)}") from error
