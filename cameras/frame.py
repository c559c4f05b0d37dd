"""A frame: one image of one part, or the reason why there is none."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from flawline.cameras.pixels import format_of, image_fault


@dataclass(frozen=True)
class Frame:
    """One image of one part, checked when it is created.

    `image` is uint8 or uint16, [h, w] mono or [h, w, 3] BGR. `pixel_format` is "mono" or "bgr"; it
    is derived from the shape where the source does not declare it. `bit_depth` is the number of
    significant bits: 8 for uint8; None for uint16 means that the source does not declare it.
    `captured_at` is the wall clock in Unix seconds, and only a label. `captured_mono` is the time
    of capture on the clock of its camera, in seconds that never go backwards; None for a file.
    `part` identifies the part where the source knows it: the number of its trigger pulse or a name
    from outside, such as a serial number. It is in the JSON line and in the names of saved files.
    A part with several exposures has `views` frames, of which this is number `view`, from 0.
    `file` is the image file that holds the frame; None for a frame of another source.

    Where a part passed but its image cannot be judged, `image` is None and `fault` says why, so
    that the part can be rejected. An image of another type or shape, an empty image, and values
    beyond `bit_depth` are turned into such a fault, and a frame with a fault has no image: creating
    a frame never raises.
    """

    source: str
    index: int
    image: npt.NDArray[Any] | None
    fault: str | None = None
    pixel_format: str = ""
    bit_depth: int | None = None
    captured_at: float = field(default_factory=time.time)
    captured_mono: float | None = None
    part: str | None = None
    view: int = 0
    views: int = 1
    file: Path | None = None

    def age(self, now: float) -> float | None:
        """Return the seconds since its capture at the time `now`, or None for a frame of a file.

        `now` is `camera.clock.monotonic()`, which a change of the wall clock does not affect.
        """
        if self.captured_mono is None:
            return None
        return max(0.0, now - self.captured_mono)

    def __post_init__(self) -> None:
        fault = self.fault
        if fault is None and self.image is None:
            fault = "the source gave no image"
        if fault is None:
            fault = image_fault(self.image, self.pixel_format, self.bit_depth)
        if fault is not None or self.image is None:
            self._set("image", None)
            self._set("fault", fault)
            return
        self._set("pixel_format", format_of(self.image))
        if self.image.dtype.itemsize == 1:
            self._set("bit_depth", 8)

    def _set(self, name: str, value: object) -> None:
        """Set a field while the frozen record is created."""
        object.__setattr__(self, name, value)
