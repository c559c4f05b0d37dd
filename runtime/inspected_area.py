"""The part of a camera's frame that is inspected, where not all of it is.

Everything outside of it is painted in one colour before an image comes to the network, in training
as on the camera. So no pixel outside has an influence on a score, whatever the method.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawline import FlawlineError
from flawline.runtime.source_frame import LARGEST_SIDE
from flawline.runtime.strict_json import SchemaError, StrictReader

# The key of the manifest that states the area.
INSPECTED_AREA = "inspected_area"

AreaMask = npt.NDArray[np.bool_]


class AreaError(FlawlineError, ValueError):
    """An image is not of the frames that the inspected area was drawn for, or there is no area."""


@dataclass(frozen=True)
class InspectedArea:
    """The inspected pixels of frames of one size.

    `bits` has one bit for each pixel of the frame, row after row, 1 where it is inspected, and the
    last byte is filled up with zeros. `of_mask` makes it. Raises ValueError for another number of
    bytes, a side that is not from 1 to 16384, and an area without a pixel.
    """

    height: int
    width: int
    bits: bytes

    def __post_init__(self) -> None:
        if not 0 < min(self.height, self.width) <= max(self.height, self.width) <= LARGEST_SIDE:
            raise ValueError(
                f"a side of {self.width}x{self.height} is not from 1 to {LARGEST_SIDE}"
            )
        if len(self.bits) != _bytes_of(self.height, self.width):
            raise ValueError(f"{len(self.bits)} bytes are no mask of {self.width}x{self.height}")
        if not self.mask.any():
            raise ValueError("no pixel is inspected")

    @classmethod
    def of_mask(cls, mask: AreaMask) -> InspectedArea:
        """Return the area of a mask, bool [height, width], True where a pixel is inspected."""
        height, width = mask.shape
        return cls(height, width, np.packbits(mask).tobytes())

    @cached_property
    def mask(self) -> AreaMask:
        """True where a pixel of the frame is inspected: bool [height, width], not to be changed."""
        bits = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.height * self.width)
        return bits.reshape(self.height, self.width).astype(bool)

    def mask_at(self, height: int, width: int) -> AreaMask:
        """Return the mask for a frame that is shown in another size: bool [height, width]."""
        if (height, width) == (self.height, self.width):
            return self.mask
        scaled = cv2.resize(
            self.mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
        )
        return scaled > 0

    @cached_property
    def share(self) -> float:
        """The share of the frame that is inspected, above 0 and at most 1."""
        return float(self.mask.mean())

    @property
    def digest(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the size and the mask."""
        content = f"{self.width}x{self.height}:".encode() + self.bits
        return hashlib.sha256(content).hexdigest()[:12]

    def __str__(self) -> str:
        return f"{self.share:.1%} of {self.width}x{self.height}"

    def require_size(self, height: int, width: int) -> None:
        """Raise AreaError for an image that is not of the size of these frames."""
        if (height, width) != (self.height, self.width):
            raise AreaError(
                f"the image is {width}x{height}, and the inspected area was drawn for frames of "
                f"{self.width}x{self.height}; set the camera to them, or train again with the area "
                f"drawn for {width}x{height}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the fields for a manifest or a checkpoint."""
        packed = base64.b64encode(zlib.compress(self.bits, 9)).decode()
        return {"height": self.height, "width": self.width, "mask": packed}


def area_from_json(content: Mapping[str, Any] | None) -> InspectedArea | None:
    """Read the area that a manifest states; None if it states none. Raises SchemaError."""
    if content is None:
        return None
    reader = StrictReader(content, INSPECTED_AREA)
    height = reader.take("height", int)
    width = reader.take("width", int)
    packed = reader.take("mask", str)
    reader.finish()
    if not 0 < min(height, width) <= max(height, width) <= LARGEST_SIDE:
        reader.refuse(f"a side of {width}x{height} is not from 1 to {LARGEST_SIDE}")
    # A few bytes may stand for gigabytes: only what the size needs is unpacked.
    unpacker = zlib.decompressobj()
    try:
        compressed = base64.b64decode(packed, validate=True)
        bits = unpacker.decompress(compressed, _bytes_of(height, width) + 1)
        if not unpacker.eof or unpacker.unused_data:
            reader.refuse("the mask does not end where it should")
        return InspectedArea(height, width, bits)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise SchemaError(f"{INSPECTED_AREA}: {error}") from error


def _bytes_of(height: int, width: int) -> int:
    """Return how many bytes the bits of a frame take."""
    return (height * width + 7) // 8
