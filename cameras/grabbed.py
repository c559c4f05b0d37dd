"""What the capture of a live camera gives: a frame, its time, or the reason why there is none."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from flawline.cameras import CameraError, Frame


class EndOfStream(Exception):
    """A live source ends on purpose."""


class CorruptFrame(Exception):
    """A frame is damaged and is left out. The text says why."""


class PermanentError(CameraError):
    """An error that opening the camera again cannot repair, such as a wrong password."""


@dataclass(frozen=True)
class Grabbed:
    """A frame of a source that knows more than its image.

    `payload` is what the image is made from, when the consumer takes the frame. `captured_mono` is
    the time of capture on the clock of the camera, in monotonic seconds. `missed` is the number of
    frames that the driver dropped since the one before.
    """

    payload: Any
    captured_mono: float
    missed: int = 0

    @classmethod
    def of(cls, image: npt.NDArray[Any] | Frame, now: float) -> Grabbed:
        """Return an image or a frame with its time, which is `now` unless the frame states it."""
        if isinstance(image, Frame) and image.captured_mono is not None:
            return cls(image, image.captured_mono)
        return cls(image, now)


@dataclass(frozen=True)
class Waiting:
    """The newest captured frame, until the consumer takes it."""

    index: int
    payload: Any
    captured_at: float
    captured_mono: float

    def frame(self, image: npt.NDArray[Any] | Frame, source: str) -> Frame:
        """Return an image as a frame, or a frame of the source with its index and time."""
        if isinstance(image, Frame):
            return dataclasses.replace(image, index=self.index, captured_mono=self.captured_mono)
        return Frame(
            source,
            self.index,
            image,
            captured_at=self.captured_at,
            captured_mono=self.captured_mono,
        )
