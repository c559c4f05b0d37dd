"""A video file, `/data/line.mp4` or `video:///data/line.mp4`, or one from stdin, `video://-`.

PyAV decodes, because OpenCV neither reports a frame that it could not decode nor one that is
damaged, and gives the frame before it again.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from flawline.cameras import Camera, CameraError, CameraOptions, Frame
from flawline.cameras.pipe import Pipe
from flawline.extras import install_command

STDIN = 0
# The path of a video that comes from stdin, and its name in messages and frames.
DASH = "-"
STDIN_NAME = "stdin"


class Video(Camera):
    """Every frame of a video file, or of a video from stdin. No frame is dropped.

    A program that writes into stdin waits until its frames are judged. A frame that cannot be
    decoded, or that depends on one, is a frame with a fault in its place.
    """

    usage: ClassVar[str] = "/data/line.mp4"

    def __init__(self, path: str, options: CameraOptions | None = None) -> None:
        super().__init__()
        self._path = path
        # FFmpeg does not allow to close a file that another thread is reading.
        self._reading = threading.Lock()
        self._pipe: Pipe | None = None
        if path == DASH:
            self._path = STDIN_NAME
            path = self._open_stdin()
        elif not Path(path).is_file():
            raise CameraError(f"camera {path}: there is no such file; check the path")
        self.source = self._path
        # Imported here because it is in an extra.
        from flawline.cameras.video_decoder import VideoDecoder

        try:
            self._decoder = VideoDecoder(path, self._pipe)
        except BaseException:
            if self._pipe is not None:
                self._pipe.close()
            raise

    def _open_stdin(self) -> str:
        """Return the path of a file that is stdin, or open the pipe and return its name."""
        try:
            mode = os.fstat(STDIN).st_mode
        except OSError:
            raise CameraError("camera video://-: stdin is closed; send a video into it") from None
        if stat.S_ISREG(mode):
            # Unlike a pipe, it can be checked as a whole.
            return f"/dev/fd/{STDIN}"
        if os.isatty(STDIN):
            raise CameraError(
                "camera video://-: stdin is a terminal; send a video into it, as in "
                "ffmpeg -i SOURCE -c copy -f mpegts - | flawline stream --camera video://- ..."
            )
        self._pipe = Pipe(STDIN)
        return STDIN_NAME

    @classmethod
    def missing(cls) -> str | None:
        try:
            import av  # noqa: F401
        except ImportError:
            return f"videos need PyAV, as OpenCV hides damaged frames; {install_command('video')}"
        return None

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
        decoded = 0
        parts = iter(self._decoder)
        while not self._stopped:
            with self._reading:
                part = self._next(parts)
            if part is None:
                break
            if isinstance(part, str):
                yield Frame(self._path, index, None, fault=f"{self._path}: frame {index}: {part}")
            else:
                decoded += 1
                yield Frame(self._path, index, part)
            index += 1
        if not self._stopped and decoded == 0:
            raise CameraError(
                f"camera {self._path}: the video holds no frame that can be decoded; "
                f"record it again"
            )

    def _next(self, parts: Iterator[Any]) -> Any:
        # `close` may have been called while this thread waited.
        if self._stopped:
            return None
        return next(parts, None)

    def stop(self) -> None:
        super().stop()
        if self._pipe is not None:
            self._pipe.stop()

    def close(self) -> None:
        super().close()
        with self._reading:
            self._decoder.close()
            if self._pipe is not None:
                self._pipe.close()
