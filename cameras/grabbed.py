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
    """A frame is damaged and is not judged. The text says why.

    `missed` is the number of frames that the driver dropped since the one before.
    """

    def __init__(self, reason: str, missed: int = 0) -> None:
        super().__init__(reason)
        self.missed = missed


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
    """A captured frame, until the consumer takes it.

    `payload` is what the image is made from, or a frame, which may have a fault and no image.
    """

    index: int
    payload: Any
    captured_at: float
    captured_mono: float

    @property
    def has_image(self) -> bool:
        """False for a frame that is known to have no image."""
        return not isinstance(self.payload, Frame) or self.payload.image is not None

    def without_image(self, source: str, fault: str) -> Waiting:
        """Return the same frame of the camera `source`, without its image for this reason."""
        frame = Frame(source, self.index, None, fault, captured_at=self.captured_at)
        if isinstance(self.payload, Frame):
            frame = dataclasses.replace(self.payload, image=None, fault=fault)
        return dataclasses.replace(self, payload=frame)

    def frame(self, image: npt.NDArray[Any] | Frame, source: str) -> Frame:
        """Return an image as a frame, or a frame of the source, with its index and times."""
        if isinstance(image, Frame):
            return dataclasses.replace(
                image,
                index=self.index,
                captured_at=self.captured_at,
                captured_mono=self.captured_mono,
            )
        return Frame(
            source,
            self.index,
            image,
            captured_at=self.captured_at,
            captured_mono=self.captured_mono,
        )
