"""What happens to a live camera between its frames, with a name for each kind."""

from __future__ import annotations

from dataclasses import dataclass

# No frame came in time, or the source reported an error: it is opened again.
STALLED = "stalled"
FAILED = "failed"
# The first frame after that.
RECOVERED = "recovered"
# A frame that is left out: it was damaged, or too old when it came or when it was requested.
CORRUPT = "corrupt"
STALE = "stale"
# The frames have another size, or another pixel format or bit depth, than those before.
RESOLUTION = "resolution"
PIXEL_FORMAT = "pixel_format"
# What the driver of a camera gives, when it is opened and when that changed.
SETTINGS = "settings"
# Those that are no problem.
INFORMATION = (SETTINGS,)

MOST_WAITING = 100


@dataclass(frozen=True)
class CameraEvent:
    """One event. `name` is a constant of this file, `text` one line with the name of the camera."""

    name: str
    text: str


class EventQueue:
    """Events of one camera that wait to be reported. The caller makes sure of one thread at a time.

    At most MOST_WAITING are kept, because the consumer of the frames may be busy for long.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._waiting: list[CameraEvent] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, name: str, text: str) -> None:
        """Add an event; the name of the camera is put before the text."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(CameraEvent(name, f"camera {self._source}: {text}"))

    def take(self) -> list[CameraEvent]:
        """Remove all events and return them."""
        waiting = self._waiting
        self._waiting = []
        return waiting
