"""A live camera that plays a script, for tests of what all live cameras share."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from fakes.clock import FakeClock
from flawline.cameras import CameraError, Frame
from flawline.cameras.events import CameraEvent
from flawline.cameras.grabbed import EndOfStream, Grabbed
from flawline.cameras.live import LiveCamera
from flawline.cameras.live_options import LiveOptions

# Real seconds after which a test that hangs fails; programs start slowly in an emulator.
WAIT_S = 60.0


class Scripted(LiveCamera):
    """A live camera that plays lists, one for each time that it is opened.

    A number is a frame of that grey value, an exception is raised, and a function is called for one
    of these. The clock passes over the pauses before restarts.
    """

    def __init__(self, *opens: list[Any], clock: FakeClock | None = None, **options: Any) -> None:
        self.opens = list(opens)
        self.reported: list[CameraEvent] = []
        super().__init__("scripted://", LiveOptions(**options), clock or FakeClock())
        self.on_event = self.reported.append

    def _pause(self, seconds: float) -> bool:
        self.clock.sleep(seconds)
        return super()._pause(0.0)

    def _open(self) -> list[Any]:
        if not self.opens:
            raise CameraError("camera scripted://: gone")
        return list(self.opens.pop(0))

    def _grab(self, handle: list[Any]) -> np.ndarray | Frame | Grabbed:
        item = handle.pop(0) if handle else EndOfStream()
        if callable(item):
            item = item()
        if isinstance(item, BaseException):
            raise item
        if isinstance(item, (Frame, Grabbed)):
            return item
        return np.full((4, 4), item, np.uint8)

    def _release(self, handle: list[Any]) -> None:
        pass


class Hang:
    """A driver call that does not return before the test ends."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._released = threading.Event()

    def __call__(self) -> int:
        self.reached.set()
        self._released.wait(WAIT_S)
        return 9

    def release(self) -> None:
        self._released.set()


def greys(camera: LiveCamera) -> list[int]:
    values = []
    for frame in camera:
        assert frame.image is not None
        values.append(int(frame.image[0, 0]))
    return values
