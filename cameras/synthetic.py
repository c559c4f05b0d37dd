"""A camera without hardware: a moving test pattern.

synthetic://?width=640&height=480&fps=25&frames=100   synthetic://?faults=50:stall,80:damaged
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt

from flawline.cameras import CameraError
from flawline.cameras.clock import Clock
from flawline.cameras.grabbed import CorruptFrame, EndOfStream, Grabbed
from flawline.cameras.live import LiveCamera
from flawline.cameras.live_options import LiveOptions
from flawline.cameras.scripted_faults import (
    DAMAGED,
    KINDS,
    LOST,
    MONO,
    OLD,
    SIZE,
    STALL,
    parse_faults,
)
from flawline.options import option

SMALLEST_SIDE = 16  # pixels: the square and the number need some room
LARGEST_SIDE = 8192
LARGEST_FPS = 1000
SQUARE_BGR = (60, 160, 240)
TEXT_BGR = (255, 255, 255)


@dataclass(frozen=True)
class SyntheticOptions(LiveOptions):
    """Options of the `synthetic` scheme."""

    width: int = option(640, f"pixels per row, from {SMALLEST_SIDE} to {LARGEST_SIDE}")
    height: int = option(480, f"rows, from {SMALLEST_SIDE} to {LARGEST_SIDE}")
    fps: float = option(25.0, f"frames per second, from 1 to {LARGEST_FPS}")
    frames: int | None = option(
        None, "frames until the source ends; without it, it runs until closed"
    )
    faults: str | None = option(
        None, f"faults at numbers of frames, as 10:damaged,20:stall; kinds: {', '.join(KINDS)}"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for side in (self.width, self.height):
            if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
                limits = f"from {SMALLEST_SIDE} to {LARGEST_SIDE}"
                raise ValueError(f"width and height must be {limits}")
        # A slower camera would be opened again, because it gives no frame for seconds.
        if not 1 <= self.fps <= LARGEST_FPS:
            raise ValueError(f"fps must be from 1 to {LARGEST_FPS}")
        if self.frames is not None and self.frames < 1:
            raise ValueError("frames must be at least 1")
        if self.faults is not None:
            parse_faults(self.faults)


@dataclass
class _Pattern:
    """An open source: when it was started, and how many frames it gave."""

    start: float
    shown: int = 0


class Synthetic(LiveCamera):
    """A bright square that moves over a grey ramp.

    It is paced like a real camera, so that a slow consumer drops frames. Each scripted fault occurs
    once, and the frames continue after it where they were.
    """

    Options: ClassVar[type[SyntheticOptions]] = SyntheticOptions
    usage: ClassVar[str] = "synthetic://?fps=25&frames=100"

    def __init__(
        self, path: str = "", options: SyntheticOptions | None = None, clock: Clock | None = None
    ) -> None:
        self._options = options or SyntheticOptions()
        super().__init__("synthetic://", self._options, clock)
        columns = np.linspace(40, 200, self._options.width, dtype=np.float32)
        rows = np.linspace(0, 50, self._options.height, dtype=np.float32)
        ramp = (columns[None] + rows[:, None]).astype(np.uint8)
        self._background = cv2.cvtColor(ramp, cv2.COLOR_GRAY2BGR)
        self._faults: dict[int, str] = {}
        if self._options.faults is not None:
            self._faults = parse_faults(self._options.faults)
        # Frames of all openings together, and the faults that last.
        self._shown = 0
        self._lasting: set[str] = set()

    @classmethod
    def example(cls, folder: Path) -> str:
        """Return the URI of a short, small and fast pattern."""
        return "synthetic://?width=64&height=48&fps=500&frames=5"

    def _open(self) -> _Pattern:
        return _Pattern(self.clock.monotonic())

    def _grab(self, handle: _Pattern) -> npt.NDArray[Any] | Grabbed:
        if self._shown == self._options.frames:
            raise EndOfStream
        # Due times count from the start, so that delays do not add up.
        due = handle.start + handle.shown / self._options.fps
        self.clock.sleep(max(0.0, due - self.clock.monotonic()))
        index = self._shown
        self._shown += 1
        handle.shown += 1
        image = self._draw(index)
        fault = self._faults.pop(index, "")
        if fault in (SIZE, MONO):
            self._lasting.add(fault)
        if SIZE in self._lasting:
            image = np.ascontiguousarray(image[::2, ::2])
        if MONO in self._lasting:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        if fault == OLD:
            return Grabbed(image, self.clock.monotonic() - 2 * self.limits.age_limit)
        self._fail(fault)
        return image

    def _fail(self, fault: str) -> None:
        """Raise what belongs to a fault, if it is one without a frame."""
        if fault == DAMAGED:
            raise CorruptFrame("as scripted")
        if fault == LOST:
            raise CameraError(f"camera {self.source}: failed, as scripted")
        if fault == STALL:
            self.clock.sleep(2 * self.limits.stall)
            raise CameraError(f"camera {self.source}: was stalled, as scripted")

    def _draw(self, index: int) -> npt.NDArray[Any]:
        width = self._options.width
        height = self._options.height
        # A new array each time: the consumer may still use the last one.
        image: npt.NDArray[Any] = self._background.copy()
        side = min(width, height) // 4
        left = index * 7 % max(1, width - side)
        top = (height - side) // 2
        cv2.rectangle(image, (left, top), (left + side, top + side), SQUARE_BGR, -1)
        cv2.putText(image, str(index), (8, height - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.6, TEXT_BGR)
        return image

    def _release(self, handle: _Pattern) -> None:
        """Nothing is held."""
