"""Whether the frames of a camera have another size or pixel format than those before."""

from __future__ import annotations

from flawline.cameras import Frame, events
from flawline.cameras.events import EventQueue


class FrameChanges:
    """Compares every frame with the one before it."""

    def __init__(self) -> None:
        self._resolution = ""
        self._pixel_format = ""

    def note(self, frame: Frame, queue: EventQueue) -> None:
        """Add an event for each change. A frame without an image is not compared."""
        if frame.image is None:
            return
        height, width = frame.image.shape[:2]
        resolution = f"{width}x{height}"
        pixel_format = f"{frame.pixel_format} of {8 * frame.image.dtype.itemsize} bits"
        if frame.bit_depth is not None:
            pixel_format = f"{frame.pixel_format} of {frame.bit_depth} bits"
        if self._resolution not in ("", resolution):
            text = f"the resolution changed from {self._resolution} to {resolution}"
            queue.add(events.RESOLUTION, text)
        if self._pixel_format not in ("", pixel_format):
            text = f"the pixel format changed from {self._pixel_format} to {pixel_format}"
            queue.add(events.PIXEL_FORMAT, text)
        self._resolution = resolution
        self._pixel_format = pixel_format
