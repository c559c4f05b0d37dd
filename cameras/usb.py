"""USB cameras through Video4Linux.

usb://0   /dev/video2   /dev/v4l/by-id/NAME   usb://0?width=1920&height=1080&fps=30
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy.typing as npt

from flawline.cameras import CameraError
from flawline.cameras.clock import Clock
from flawline.cameras.live import LiveCamera
from flawline.cameras.live_options import LiveOptions
from flawline.cameras.v4l2 import LIST, is_camera, problem_of
from flawline.options import option


@dataclass(frozen=True)
class UsbOptions(LiveOptions):
    """Options of the `usb` scheme. None leaves the setting to the driver."""

    width: int | None = option(None, "pixels per row, at least 1")
    height: int | None = option(None, "rows, at least 1")
    fps: int | None = option(None, "frames per second, at least 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        values = {"width": self.width, "height": self.height, "fps": self.fps}
        for name, value in values.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1")


class Usb(LiveCamera):
    """A camera by its number or device file, or by a link to that file.

    The driver may choose another size or rate than requested; the frames that it gives are judged
    as they are.
    """

    untested: ClassVar[str | None] = "on a real camera"
    Options: ClassVar[type[UsbOptions]] = UsbOptions
    usage: ClassVar[str] = "usb://0, /dev/video0"

    def __init__(
        self, path: str, options: UsbOptions | None = None, clock: Clock | None = None
    ) -> None:
        self._options = options or UsbOptions()
        super().__init__(f"usb://{path}", self._options, clock)
        self._device: int | str = path
        self._file = path
        if path.isdecimal():
            self._device = int(path)
            self._file = f"/dev/video{self._device}"
        self._check()

    @classmethod
    def accepts_path(cls, path: Path) -> bool:
        return is_camera(path)

    @classmethod
    def broken_example(cls, folder: Path) -> str:
        """Return the URI of a device file that does not exist."""
        return f"usb://{folder}/video63"

    def _check(self) -> None:
        """Raise CameraError if a reason is known why the device cannot be used."""
        problem = problem_of(self._file)
        if problem is not None:
            raise CameraError(f"camera {self.source}: {problem}")

    def _open(self) -> cv2.VideoCapture:
        # OpenCV does not say why a device cannot be opened.
        self._check()
        capture = cv2.VideoCapture(self._device, cv2.CAP_V4L2)
        if not capture.isOpened():
            capture.release()
            raise CameraError(
                f"camera {self.source}: cannot be opened; {LIST}, "
                f"and check that no other program uses this one"
            )
        if not self.limits.keeps_all:
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        settings = (
            (cv2.CAP_PROP_FRAME_WIDTH, self._options.width),
            (cv2.CAP_PROP_FRAME_HEIGHT, self._options.height),
            (cv2.CAP_PROP_FPS, self._options.fps),
        )
        for setting, value in settings:
            if value is not None:
                capture.set(setting, value)
        return capture

    def _grab(self, handle: cv2.VideoCapture) -> npt.NDArray[Any]:
        ok, image = handle.read()
        if not ok:
            raise CameraError(f"camera {self.source}: stopped giving frames; check the cable")
        return image

    def _release(self, handle: cv2.VideoCapture) -> None:
        handle.release()
