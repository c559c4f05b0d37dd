"""Opening a video with PyAV, from a file or a pipe."""

from __future__ import annotations

from typing import Any

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from flawline.cameras import CameraError
from flawline.cameras.pipe import Pipe

CUT_OFF = "an MP4 whose recording was cut off has no index); record it again"
STREAMABLE = "send MPEG-TS, Matroska, fragmented MP4, H.264 or MJPEG through the pipe"


def open_video(path: str, pipe: Pipe | None) -> InputContainer:
    """Open a file, or a pipe whose name in messages is `path`. Raises CameraError."""
    source: Any = pipe or path
    try:
        container: InputContainer = av.open(source, "r")
        return container
    except (av.FFmpegError, OSError) as error:
        text = f"camera {path}: PyAV cannot open this video ({_text(error)}"
        if pipe is None:
            raise CameraError(f"{text}; {CUT_OFF}") from error
        raise CameraError(f"{text}); {STREAMABLE}") from error


def image_stream(container: InputContainer, path: str) -> VideoStream:
    """Return the first video stream that is not the cover image of a sound file."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            chosen: VideoStream = stream
            return chosen
    raise CameraError(f"camera {path}: the file has no video; check the path")


def _text(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
