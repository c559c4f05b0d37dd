"""What a bundle knows about its good images, for the check of drift, and its form in a manifest."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.runtime.drift.dependence import variance_inflation
from flawline.runtime.drift.fineness import ExpectedFineness, fineness_from_json
from flawline.runtime.drift.meter import SIDE, TEXTURE_SIZE
from flawline.runtime.drift.numbers import numbers_of, short
from flawline.runtime.drift.quantities import (
    ACROSS,
    DOWN,
    FINENESS,
    HALF_FINENESS,
    LIKENESS,
    QUANTITIES,
    SCORE,
    TEXTURE,
)
from flawline.runtime.strict_json import SchemaError, StrictReader, one_line

# The key of the manifest.
DRIFT = "drift"
# Fewer good images support no limit.
FEWEST = 8
# More would move a limit hardly any more, and a file may state any number.
MOST_COUNTED = 1000
MOST_CHANGES = 64
PICTURE_BYTES = SIDE * SIDE


@dataclass(frozen=True)
class Range:
    """How a quantity is distributed over the good images.

    `low` and `high` are its smallest and largest value, but for one of each hundred images,
    `lower` and `upper` its quarters, and `middle` is the median. Of the images, `independent`
    count, because those that follow each other may be similar.
    """

    images: int
    independent: int
    low: float
    lower: float
    middle: float
    upper: float
    high: float

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Range:
        """Return the range of values, [n], in the order in which the images were taken.

        n is at least FEWEST.
        """
        images = len(values)
        ordered = np.sort(values.astype(np.float64))
        independent = max(1, round(images / variance_inflation(values)))
        extreme = extreme_of(images)
        quarter = images // 4
        return cls(
            images,
            independent,
            short(ordered[extreme - 1]),
            short(ordered[quarter - 1]),
            short(np.median(ordered)),
            short(ordered[-quarter]),
            short(ordered[-extreme]),
        )

    @property
    def counted(self) -> int:
        """How many good images limits are computed with: the independent ones, up to a number."""
        return min(self.independent, MOST_COUNTED)

    @property
    def extreme(self) -> int:
        """Which of the largest counted values `high` is, counted from the largest, from 1."""
        # Rounded up, which makes a count that chance explains larger.
        return -(-extreme_of(self.images) * self.counted // self.images)

    def to_json(self) -> dict[str, Any]:
        """Return the fields for a manifest or a calibration."""
        values = [self.low, self.lower, self.middle, self.upper, self.high]
        return {"images": self.images, "independent": self.independent, "values": values}


def range_of(values: npt.NDArray[Any]) -> Range | None:
    """Return the range of values, [n], as `Range.of` does; None for fewer than FEWEST."""
    return Range.of(values) if len(values) >= FEWEST else None


def extreme_of(images: int) -> int:
    """Return the place of `high` among the largest values: of many images, a few may be odd."""
    return 1 + images // 100


@dataclass(frozen=True)
class Texture:
    """The textures of the good images: their mean, and what makes their spread 1 in each direction.

    `mean` has 8 numbers, `whitening` 8x8, row after row, and `changes` what other light and blur
    add to the mean, 8 numbers each.
    """

    mean: tuple[float, ...]
    whitening: tuple[float, ...]
    changes: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class DriftReference:
    """What the frames of a stream are compared with.

    `ranges` has the quantities by their names in QUANTITIES. `picture` is the mean small picture
    of the good images, 64x64 grey levels row after row, if they show the same things at the same
    places; otherwise it is None, and `texture` takes its place. A frame whose small picture
    differs by less than `step` grey levels from the one before, in the mean, shows the same part.
    `fineness` is what the fineness of a frame is compared with.
    """

    ranges: Mapping[str, Range]
    step: float
    picture: bytes | None = None
    texture: Texture | None = None
    fineness: ExpectedFineness | None = None

    def with_scores(self, scores: Range | None) -> DriftReference:
        """Return this reference with other scores of good parts; None leaves them as they are."""
        if scores is None:
            return self
        return replace(self, ranges={**self.ranges, SCORE: scores})

    def to_json(self) -> dict[str, Any]:
        """Return the fields for the manifest."""
        ranges = {name: values.to_json() for name, values in self.ranges.items()}
        content: dict[str, Any] = {"ranges": ranges, "step": self.step}
        if self.picture is not None:
            content["picture"] = base64.b64encode(zlib.compress(self.picture, 9)).decode()
        if self.texture is not None:
            content["texture"] = {
                "mean": list(self.texture.mean),
                "whitening": list(self.texture.whitening),
                "changes": [list(change) for change in self.texture.changes],
            }
        if self.fineness is not None:
            content["fineness"] = self.fineness.to_json()
        return content


def reference_from_json(content: Mapping[str, Any] | None) -> DriftReference | None:
    """Read what `DriftReference.to_json` returned; None for None. Raises SchemaError."""
    if content is None:
        return None
    reader = StrictReader(content, DRIFT)
    ranges = {}
    for name, fields in reader.take("ranges", dict).items():
        if name not in QUANTITIES:
            reader.refuse(f"ranges: this version does not know {name}")
        if not isinstance(fields, dict):
            reader.refuse(f"ranges: {name} is no object")
        ranges[name] = range_from_json(fields, f"{DRIFT}: ranges: {name}")
    step = reader.take("step", float)
    if step < 0:
        reader.refuse(f"step is {step}, below 0")
    packed = reader.take_optional("picture", str)
    picture = None if packed is None else _picture_from_text(reader, packed)
    texture = _texture_from_json(reader.take_object("texture"))
    fineness = fineness_from_json(reader.take_object("fineness"), f"{DRIFT}: fineness")
    reader.finish()
    reference = DriftReference(ranges, step, picture, texture, fineness)
    _require_together(reader, reference)
    return reference


def _require_together(reader: StrictReader, reference: DriftReference) -> None:
    """Refuse quantities that lack what they are measured with."""
    needed: tuple[tuple[object, tuple[str, ...]], ...] = (
        (reference.picture, (ACROSS, DOWN, LIKENESS)),
        (reference.texture, (TEXTURE,)),
        (reference.fineness, (FINENESS, HALF_FINENESS)),
    )
    for present, names in needed:
        for name in names:
            if (name in reference.ranges) != (present is not None):
                reader.refuse(f"ranges: {name} does not fit picture, texture and fineness")


def range_from_json(content: Mapping[str, Any], where: str) -> Range:
    """Read what `Range.to_json` returned; `where` is in front of messages. Raises SchemaError."""
    reader = StrictReader(content, where)
    images = reader.take("images", int)
    independent = reader.take("independent", int)
    values = numbers_of(reader, reader.take("values", list), 5)
    reader.finish()
    if not images >= FEWEST or not 1 <= independent <= images:
        reader.refuse("the numbers of images do not fit together")
    if list(values) != sorted(values):
        reader.refuse("values do not rise")
    return Range(images, independent, *values)


def _picture_from_text(reader: StrictReader, packed: str) -> bytes:
    # A few bytes may stand for gigabytes: only what the picture needs is unpacked.
    unpacker = zlib.decompressobj()
    try:
        data = base64.b64decode(packed, validate=True)
        picture = unpacker.decompress(data, PICTURE_BYTES + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise SchemaError(f"{DRIFT}: picture: {one_line(error)}") from error
    if len(picture) != PICTURE_BYTES or not unpacker.eof or unpacker.unused_data:
        reader.refuse(f"picture is not one of {SIDE}x{SIDE} grey levels")
    return picture


def _texture_from_json(content: Mapping[str, Any] | None) -> Texture | None:
    if content is None:
        return None
    reader = StrictReader(content, f"{DRIFT}: texture")
    mean = numbers_of(reader, reader.take("mean", list), TEXTURE_SIZE)
    whitening = numbers_of(reader, reader.take("whitening", list), TEXTURE_SIZE**2)
    lists = reader.take("changes", list)
    if len(lists) > MOST_CHANGES:
        reader.refuse(f"there are more than {MOST_CHANGES} changes")
    changes = tuple(numbers_of(reader, numbers, TEXTURE_SIZE) for numbers in lists)
    reader.finish()
    return Texture(mean, whitening, changes)
