"""Cameras: where frames come from. A camera is a URI; a file, a folder or a device is opened the same way.

    /data/images   /data/part.png   /data/line.mp4   usb://0   usb:///dev/video2   synthetic://?fps=25&frames=100

Files never drop a frame. Live sources hand out the newest frame and count what was dropped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy.typing as npt

from flawline import FlawlineError

# scheme -> "module:Class", resolved when used. The class is called with the path after the scheme and the options
# after the question mark as keywords of strings.
CAMERAS = {
    "folder": "flawline.cameras.files:Folder",
    "video": "flawline.cameras.files:Video",
    "usb": "flawline.cameras.usb:Usb",
    "synthetic": "flawline.cameras.synthetic:Synthetic",
}


class CameraError(FlawlineError):
    """The source cannot give (more) frames; the message is one line and ends with the remedy."""


@dataclass(frozen=True)
class Frame:
    """One picture of one part: uint8 [h, w, 3] BGR or [h, w] mono.

    `captured_at` is wall time (Unix seconds) and only a label; `monotonic` is what ages are measured with. Where a
    part came by but its picture cannot be judged, `image` is None and `fault` says why: it must not pass unseen.
    """

    source: str
    index: int
    image: npt.NDArray[Any] | None
    fault: str | None = None
    captured_at: float = field(default_factory=time.time)
    monotonic: float = field(default_factory=time.monotonic)


class Camera(Protocol):
    """Iterating yields frames until the source ends; `close()` ends it from any thread.

    `dropped` counts frames that a live source captured and nobody was in time to see. `untested` names what no
    test has reached yet, or is None.
    """

    live: ClassVar[bool]
    untested: ClassVar[str | None]
    dropped: int

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None: ...


def open_camera(uri: str) -> Camera:
    """Open a camera by URI or by the plain path of a folder, an image or a video. Raises CameraError."""
    scheme, path, options = _parse(uri)
    if scheme not in CAMERAS:
        raise CameraError(
            f"camera {uri}: scheme {scheme!r} is unknown; known: {', '.join(CAMERAS)}, or a path"
        )
    try:
        camera: Camera = resolve_name(CAMERAS[scheme])(path, **options)
    except TypeError as error:
        if not options:
            raise
        raise CameraError(f"camera {uri}: {_known_options(scheme)}") from error
    except ValueError as error:
        raise CameraError(f"camera {uri}: {error}; {_known_options(scheme)}") from error
    return camera


def _parse(uri: str) -> tuple[str, str, dict[str, str]]:
    if "://" in uri:
        parts = urlsplit(uri)
        path = unquote(parts.netloc + parts.path)
        if parts.scheme != "file":
            return parts.scheme, path, dict(parse_qsl(parts.query))
        query = parts.query
    else:
        path, _, query = (uri, "", "") if Path(uri).exists() else uri.partition("?")
    from flawline.cameras.files import is_image

    file = Path(path)
    if not file.exists():
        raise CameraError(f"camera {uri}: there is no such file or folder")
    scheme = "folder" if file.is_dir() or is_image(file) else "video"
    return scheme, path, dict(parse_qsl(query))


def _known_options(scheme: str) -> str:
    import inspect

    names = list(inspect.signature(resolve_name(CAMERAS[scheme])).parameters)[1:]
    return f"{scheme} takes {', '.join(names) if names else 'no options'}"
