"""Frames of a live camera that wait to be taken: only the newest, or all of them in a queue."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import deque

from flawline.cameras import CameraError, Frame
from flawline.cameras.clock import Clock
from flawline.cameras.grabbed import Waiting

MOST_WAITING = 10_000  # frames, nearly all of them without an image


class WaitingFrames(ABC):
    """What a camera captured and its consumer has not taken yet.

    Calls of several threads must be serialised by the caller.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Return how many frames wait."""

    @abstractmethod
    def put(self, waiting: Waiting) -> int:
        """Add the next frame; return how many images were dropped for it. Raises CameraError."""

    @abstractmethod
    def put_fault(self, fault: str) -> None:
        """Add a frame without an image, for the reason `fault`, if it is to be judged as such.

        Raises CameraError as `put` does.
        """

    @abstractmethod
    def take(self) -> Waiting | None:
        """Take the next frame, or None."""

    @abstractmethod
    def reopen(self) -> int:
        """Discard what is useless when the camera is opened again; return how many images."""

    @abstractmethod
    def clear(self) -> int:
        """Discard everything, since the stream ends; return how many images."""


class NewestFrame(WaitingFrames):
    """One slot. A frame replaces the one before it, and frames without an image are left out."""

    def __init__(self) -> None:
        self._slot: Waiting | None = None

    def __len__(self) -> int:
        return int(self._slot is not None)

    def put(self, waiting: Waiting) -> int:
        dropped = len(self)
        self._slot = waiting
        return dropped

    def put_fault(self, fault: str) -> None:
        """Leave it out: the camera has counted it."""

    def take(self) -> Waiting | None:
        waiting = self._slot
        self._slot = None
        return waiting

    def reopen(self) -> int:
        return self.clear()

    def clear(self) -> int:
        discarded = len(self)
        self._slot = None
        return discarded


class FrameQueue(WaitingFrames):
    """All frames in the order of their capture, of which at most `images` hold an image.

    A frame whose image does not fit keeps its place without it. The frames are numbered from 0.
    """

    def __init__(self, source: str, images: int, clock: Clock) -> None:
        self._source = source
        self._capacity = images
        self._clock = clock
        self._frames: deque[Waiting] = deque()
        self._images = 0
        self._index = 0

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, waiting: Waiting) -> int:
        dropped = 0
        if waiting.has_image and self._images >= self._capacity:
            dropped = 1
            waiting = waiting.without_image(
                self._source,
                f"{self._capacity} images were waiting already; inspect faster, or let more wait "
                f"with queue=N",
            )
        if len(self._frames) >= MOST_WAITING:
            raise CameraError(
                f"camera {self._source}: {MOST_WAITING} frames wait for their verdicts; check why "
                f"the inspection hangs"
            )
        if waiting.has_image:
            self._images += 1
        self._frames.append(dataclasses.replace(waiting, index=self._index))
        self._index += 1
        return dropped

    def put_fault(self, fault: str) -> None:
        now = self._clock.monotonic()
        frame = Frame(self._source, 0, None, fault, captured_at=self._clock.time())
        self.put(Waiting(0, frame, frame.captured_at, now))

    def take(self) -> Waiting | None:
        if not self._frames:
            return None
        waiting = self._frames.popleft()
        if waiting.has_image:
            self._images -= 1
        return waiting

    def reopen(self) -> int:
        """Keep everything."""
        return 0

    def clear(self) -> int:
        # Those without an image were counted when they came.
        discarded = self._images
        self._frames.clear()
        self._images = 0
        return discarded
