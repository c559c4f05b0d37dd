"""A camera without hardware: a moving test pattern.

synthetic://?width=640&height=480&fps=25&frames=100   synthetic://?faults=50:stall,80:damaged
synthetic://?trigger=line1&faults=3:damaged,5:missing,8:lost
"""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt

from flawline.cameras import CameraError
from flawline.cameras.clock import Clock
from flawline.cameras.grabbed import EndOfStream
from flawline.cameras.parts import Block
from flawline.cameras.scripted_faults import (
    DAMAGED,
    KINDS,
    LOST,
    MISSING,
    MONO,
    OLD,
    SIZE,
    STALL,
    parse_faults,
)
from flawline.cameras.trigger_options import TriggerOptions
from flawline.cameras.triggered import POLL_S, TriggeredCamera
from flawline.options import option

SMALLEST_SIDE = 16  # pixels: the square and the number need some room
LARGEST_SIDE = 8192
LARGEST_FPS = 1000
SQUARE_BGR = (60, 160, 240)
TEXT_BGR = (255, 255, 255)


@dataclass(frozen=True)
class SyntheticOptions(TriggerOptions):
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
    """An open source: when it was started, how many blocks it gave, and the pulses it received."""

    start: float
    blocks: int = 0
    pulses: queue.SimpleQueue[None] = field(default_factory=queue.SimpleQueue)


class Synthetic(TriggeredCamera):
    """A bright square that moves over a grey ramp.

    It is paced like a real camera, so that a slow consumer drops frames. With `trigger=line1`, a
    sensor on the line sends `fps` pulses per second; with `trigger=software`, it waits for them.
    Each scripted fault occurs once, and the frames continue after it where they were.
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

    def _take(self, handle: _Pattern) -> Block | None:
        if self._shown == self._options.frames:
            raise EndOfStream
        if not self._wait_for_exposure(handle):
            return None
        index = self._shown
        self._shown += 1
        handle.blocks += 1
        fault = self._faults.pop(index, "")
        if fault in (SIZE, MONO):
            self._lasting.add(fault)
        self._fail(fault)
        if fault == MISSING:
            return None
        if fault == DAMAGED:
            return Block(None, handle.blocks, "the image is incomplete, as scripted")
        age = 2 * self.limits.age_limit if fault == OLD else 0.0
        return Block(self._image(index), handle.blocks, age=age)

    def _wait_for_exposure(self, handle: _Pattern) -> bool:
        """Wait for the next exposure at most POLL_S seconds; return whether it is there."""
        if self.trigger == "software":
            try:
                handle.pulses.get(timeout=POLL_S)
            except queue.Empty:
                return False
            return True
        # Due times count from the start, so that delays do not add up.
        due = handle.start + handle.blocks / self._options.fps
        pause = max(0.0, due - self.clock.monotonic())
        self.clock.sleep(min(pause, POLL_S))
        return pause <= POLL_S

    def _fire(self, handle: _Pattern) -> None:
        handle.pulses.put(None)

    def _first_block(self, handle: _Pattern) -> int:
        return 1

    def _fail(self, fault: str) -> None:
        """Raise what belongs to a fault, if it is one of the camera."""
        if fault == LOST:
            raise CameraError(f"camera {self.source}: failed, as scripted")
        if fault == STALL:
            self.clock.sleep(2 * self.limits.stall)
            raise CameraError(f"camera {self.source}: was stalled, as scripted")

    def _image(self, index: int) -> npt.NDArray[Any]:
        image = self._draw(index)
        if SIZE in self._lasting:
            image = np.ascontiguousarray(image[::2, ::2])
        if MONO in self._lasting:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        return image

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
