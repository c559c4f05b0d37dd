"""The options that all live cameras share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flawline.cameras import CameraOptions
from flawline.options import option

DEFAULT_QUEUE = 16
LARGEST_QUEUE = 1000


@dataclass(frozen=True)
class LiveOptions(CameraOptions):
    """Base of the options of a live camera. All times are in seconds.

    Raises ValueError for a time that is not positive, for a negative number of restarts, for a
    queue of a camera that has none, and for `max_age` above `stall`: a frame that comes at the end
    of a stall would then be judged.
    """

    first_frame: float = option(
        10.0, "seconds after opening within which the first frame must come"
    )
    stall: float = option(3.0, "seconds without a frame after which the camera is opened again")
    max_age: float | None = option(
        None, "seconds; an older frame is left out and counted as stale; without it, half of stall"
    )
    restarts: int = option(60, "how often the camera is opened again within window; then it fails")
    window: float = option(
        120.0, "seconds in which restarts are counted, and without a usable frame until it fails"
    )
    every_frame: bool = option(
        False, "let frames wait in a queue, instead of dropping all but the newest"
    )
    queue: int | None = option(
        None,
        f"images that may wait with every_frame or a trigger, 1 to {LARGEST_QUEUE}; "
        f"{DEFAULT_QUEUE} if not given",
    )

    def __post_init__(self) -> None:
        times = {
            "first_frame": self.first_frame,
            "stall": self.stall,
            "max_age": self.age_limit,
            "window": self.window,
        }
        for name, value in times.items():
            # Not `value <= 0`, which is false for NaN.
            if not value > 0:
                raise ValueError(f"{name} must be above 0")
        if self.age_limit > self.stall:
            raise ValueError(f"max_age must be at most {self.stall:g}, the time of a stall")
        if self.restarts < 0:
            raise ValueError("restarts must be at least 0")
        if self.queue is not None and not 1 <= self.queue <= LARGEST_QUEUE:
            raise ValueError(f"queue must be from 1 to {LARGEST_QUEUE}")
        if self.queue is not None and not self.keeps_all:
            raise ValueError("queue needs every_frame=1, or a trigger where the camera has one")

    @property
    def keeps_all(self) -> bool:
        """True if frames wait in a queue, so that none is left out; False for the newest alone."""
        return self.every_frame

    @property
    def queue_size(self) -> int:
        """How many images may wait in the queue."""
        if self.queue is None:
            return DEFAULT_QUEUE
        return self.queue

    @property
    def age_limit(self) -> float:
        """The age in seconds above which a frame is old."""
        if self.max_age is None:
            return self.stall / 2
        return self.max_age

    @property
    def oldest_judged(self) -> float:
        """The age in seconds above which a frame is not judged.

        A frame of a queue has waited there, so that it has no limit unless `max_age` is given.
        """
        if self.keeps_all and self.max_age is None:
            return math.inf
        return self.age_limit
