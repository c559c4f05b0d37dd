"""USB cameras through Video4Linux: `usb://0`, `usb:///dev/video2`, `usb://0?width=1920&height=1080&fps=30`."""

from __future__ import annotations

from typing import Any, ClassVar

import cv2
import numpy.typing as npt

from flawline.cameras import CameraError
from flawline.cameras.live import NewestFrame


class Usb(NewestFrame):
    """The driver may answer with another size or rate than asked for; what it gives is what is judged."""

    untested: ClassVar[str | None] = "on a real camera"

    def __init__(
        self, path: str, width: str | None = None, height: str | None = None, fps: str | None = None
    ) -> None:
        self._device: int | str = int(path) if path.isdecimal() else path
        wanted = (
            (cv2.CAP_PROP_FRAME_WIDTH, width),
            (cv2.CAP_PROP_FRAME_HEIGHT, height),
            (cv2.CAP_PROP_FPS, fps),
        )
        self._wanted = [(prop, float(text)) for prop, text in wanted if text is not None]
        # An unplugged node still reports isOpened(): only a frame proves a camera, and the first may take seconds.
        super().__init__(f"usb://{path}", stall_s=5.0)

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(self._device, cv2.CAP_V4L2)
        if not capture.isOpened():
            capture.release()
            raise CameraError(
                f"camera {self.source}: cannot be opened; see which exist with ls /dev/video*, "
                f"and whether another program holds it"
            )
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        for prop, value in self._wanted:
            capture.set(prop, value)
        return capture

    def _grab(self, handle: cv2.VideoCapture) -> npt.NDArray[Any]:
        ok, image = handle.read()
        if not ok:
            raise CameraError(f"camera {self.source}: stopped giving frames")
        return image

    def _release(self, handle: cv2.VideoCapture) -> None:
        handle.release()
