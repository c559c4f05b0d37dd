"""The options that all live cameras share."""

from __future__ import annotations

from dataclasses import dataclass

from flawline.cameras import CameraOptions
from flawline.options import option


@dataclass(frozen=True)
class LiveOptions(CameraOptions):
    """Base of the options of a live camera. All times are in seconds.

    Raises ValueError for a time that is not positive, for a negative number of restarts, and for
    `max_age` above `stall`: a frame that comes at the end of a stall would then be judged.
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

    @property
    def age_limit(self) -> float:
        """The age in seconds above which a frame is not judged."""
        if self.max_age is None:
            return self.stall / 2
        return self.max_age
