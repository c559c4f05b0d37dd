"""A camera without hardware: `synthetic://?width=640&height=480&fps=25&frames=100`. A moving test pattern, live."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt

from flawline.cameras.live import EndOfStream, NewestFrame


@dataclass
class _Clock:
    start: float
    shown: int = 0


class Synthetic(NewestFrame):
    """Paced like a real camera, so a slow consumer drops frames. Without `frames` it runs until closed."""

    live: ClassVar[bool] = True

    def __init__(
        self,
        path: str = "",
        width: str = "640",
        height: str = "480",
        fps: str = "25",
        frames: str | None = None,
    ) -> None:
        self._width, self._height, self._fps = int(width), int(height), float(fps)
        self._frames = None if frames is None else int(frames)
        if (
            min(self._width, self._height) < 16
            or self._fps <= 0
            or (self._frames is not None and self._frames < 1)
        ):
            raise ValueError("width and height must be at least 16, fps above 0, frames at least 1")
        x = np.linspace(40, 200, self._width, dtype=np.float32)
        y = np.linspace(0, 50, self._height, dtype=np.float32)
        self._background = cv2.cvtColor((x[None] + y[:, None]).astype(np.uint8), cv2.COLOR_GRAY2BGR)
        super().__init__("synthetic://")

    def _open(self) -> _Clock:
        return _Clock(time.monotonic())

    def _grab(self, handle: _Clock) -> npt.NDArray[Any]:
        if handle.shown == self._frames:
            raise EndOfStream
        due = handle.start + handle.shown / self._fps
        time.sleep(max(0.0, due - time.monotonic()))
        image: npt.NDArray[Any] = self._background.copy()
        side = min(self._width, self._height) // 4
        left = handle.shown * 7 % max(1, self._width - side)
        top = (self._height - side) // 2
        cv2.rectangle(image, (left, top), (left + side, top + side), (60, 160, 240), -1)
        cv2.putText(
            image,
            str(handle.shown),
            (8, self._height - 8),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.6,
            (255, 255, 255),
        )
        handle.shown += 1
        return image

    def _release(self, handle: _Clock) -> None:
        pass
