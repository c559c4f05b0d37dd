"""A video file: `/data/line.mp4` or `video:///data/line.mp4`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from flawline.cameras import Camera, CameraError, CameraOptions, Frame


class Video(Camera):
    """Every frame of a video file that OpenCV can decode. No frame is dropped."""

    usage: ClassVar[str] = "/data/line.mp4"

    def __init__(self, path: str, options: CameraOptions | None = None) -> None:
        super().__init__()
        self._path = path
        # OpenCV does not allow to release a capture that another thread is reading.
        self._reading = threading.Lock()
        if not Path(path).is_file():
            raise CameraError(f"camera {path}: there is no such file; check the path")
        self._capture = cv2.VideoCapture(path)
        if not self._capture.isOpened():
            raise CameraError(
                f"camera {path}: OpenCV cannot open this video (an MP4 whose "
                f"recording was cut off has no index); record it again"
            )

    @classmethod
    def accepts_path(cls, path: Path) -> bool:
        # Images come first, because folder is listed before video.
        return path.is_file()

    @classmethod
    def example(cls, folder: Path) -> str:
        """Write a video of three frames into `folder` and return its URI."""
        path = folder / "example.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
        for index in range(3):
            writer.write(np.full((48, 64, 3), 40 + index, np.uint8))
        writer.release()
        return f"video://{path}"

    @classmethod
    def broken_example(cls, folder: Path) -> str:
        """Write a damaged video into `folder` and return its URI."""
        path = folder / "damaged.mp4"
        path.write_bytes(bytes(100))
        return f"video://{path}"

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while not self._stopped:
            with self._reading:
                ok, image = self._capture.read()
            if not ok:
                break
            yield Frame(self._path, index, image)
            index += 1
        if self._stopped:
            return
        if index == 0:
            raise CameraError(
                f"camera {self._path}: the video holds no frame that can be decoded; "
                f"record it again"
            )
        # OpenCV reports damage as the end of the file; the container knows how many frames there
        # are.
        expected = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if index < expected:
            fault = (
                f"{self._path}: damaged after frame {index - 1}, "
                f"{expected - index} frames cannot be decoded; record it again"
            )
            yield Frame(self._path, index, None, fault=fault)

    def close(self) -> None:
        super().close()
        with self._reading:
            self._capture.release()
