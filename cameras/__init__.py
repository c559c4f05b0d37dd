"""Cameras: where frames come from. Files, folders and devices are opened by a URI.

    /data/images   /data/part.png   /data/line.mp4   folder:///data/images?watch=1
    usb://0   /dev/video0   rtsp://HOST/PATH   synthetic://?fps=25&frames=100
    basler://SERIAL   gige://SERIAL?cti=FILE   aravis://SERIAL

File sources never drop a frame. Live sources hand out the newest frame and count the frames that
they dropped, or with `every_frame=1` hand out all of them. A new camera is one file with a subclass
of `Camera`, or of `live.LiveCamera`, and one line in `CAMERAS`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flawline import FlawlineError
from flawline.cameras.clock import Clock, SystemClock
from flawline.cameras.events import CameraEvent
from flawline.cameras.frame import Frame
from flawline.cameras.hints import (
    hint_for_missing_path,
    hint_for_scheme,
    hint_for_special_file,
)
from flawline.options import OptionError, option, parse_options
from flawline.registry import resolve
from flawline.uris import parse_query, split_address, split_options, without_secrets

__all__ = [
    "CAMERAS",
    "Camera",
    "CameraError",
    "CameraOptions",
    "Frame",
    "camera_class",
    "missing",
    "open_camera",
]

# Scheme of the URI -> "module:Class", resolved when it is used.
CAMERAS = {
    "folder": "flawline.cameras.folder:Folder",
    "video": "flawline.cameras.video:Video",
    "usb": "flawline.cameras.usb:Usb",
    "rtsp": "flawline.cameras.rtsp:Rtsp",
    "rtsps": "flawline.cameras.rtsp:Rtsps",
    "gst": "flawline.cameras.gstreamer:GStreamer",
    "csi": "flawline.cameras.gstreamer:Csi",
    "basler": "flawline.cameras.basler:Basler",
    "gige": "flawline.cameras.gige:Gige",
    "aravis": "flawline.cameras.aravis:Aravis",
    "synthetic": "flawline.cameras.synthetic:Synthetic",
}


# It is a part of file names.
NAME = r"[A-Za-z0-9._-]{1,24}"


class CameraError(FlawlineError):
    """The source cannot give frames, or no more of them."""


@dataclass(frozen=True)
class CameraOptions:
    """Base of the options of a camera, which are the query part of its URI.

    See `flawline.options` for how a subclass declares them.
    """

    name: str | None = option(None, "what the results call the camera, if there are several")


class Camera(ABC):
    """A source of frames. Iterating yields frames until the source ends or `stop()` is called.

    A subclass is constructed as `Class(path, options)`, where `path` is the part of the URI after
    the scheme and `options` is an instance of the class attribute `Options`. It raises CameraError,
    from the constructor or while iterating, for a source that does not work.
    """

    # True for a source that does not wait for its consumer.
    live: ClassVar[bool] = False
    # The part that no test covers, for example "on a real camera"; None if there is none.
    untested: ClassVar[str | None] = None
    # True if the part after the scheme is the address of a server, which is not decoded as a path.
    is_address: ClassVar[bool] = False
    # URIs or paths as examples, separated by commas, for the help texts of commands.
    usage: ClassVar[str] = ""
    Options: ClassVar[type[CameraOptions]] = CameraOptions

    def __init__(self) -> None:
        # What it is called in messages, without secrets, and the name that the user gave it.
        self.source = ""
        self.name: str | None = None
        # How many frames, one after the other, are exposures of the same part.
        self.views = 1
        # Frames that were captured, and replaced by newer ones before the consumer took them.
        self.dropped = 0
        # How often the source failed and was opened again.
        self.reconnects = 0
        self.lost: str | None = None  # why one of several has failed for good
        self.clock: Clock = SystemClock()
        # Called by the iterating thread for what happens between two frames.
        self.on_event: Callable[[CameraEvent], None] = lambda event: None
        self._stopped = False

    @property
    def endless(self) -> bool:
        """Whether the source does not end by itself, so that its frames must be limited."""
        return self.live

    @property
    def newest_only(self) -> bool:
        """Whether a frame that was not taken is replaced by the next one."""
        return False

    @property
    def knows_parts(self) -> bool:
        """Whether it is known which part each frame shows: the next one, or that of its `part`.

        Frames of several cameras then belong together if they show the same part.
        """
        return not self.endless

    @classmethod
    def missing(cls) -> str | None:
        """Say what must be installed before this camera can be used; None if it can be used."""
        return None

    @classmethod
    def accepts_path(cls, path: Path) -> bool:
        """Tell whether this camera opens a path that is given without a scheme.

        The path need not exist: a camera may accept the name of a device that is not connected.
        """
        return False

    @classmethod
    def example(cls, folder: Path) -> str | None:
        """Return a URI that works without hardware, or None if there is none.

        Files that it needs are written into `folder`, which is empty. The frames are valid. The
        contract tests use it, so that listing a camera in CAMERAS tests it.
        """
        return None

    @classmethod
    def broken_example(cls, folder: Path) -> str | None:
        """Return a URI whose source is absent or damaged, or None if the source cannot fail.

        Files may be written into `folder`, as in `example`.
        """
        return None

    def files(self) -> list[Path]:
        """Return the image files that will be read, in order, if they are known beforehand."""
        return []

    def frame_count(self) -> int | None:
        """Return how many frames the source gives, or None if that is not known beforehand."""
        return None

    def counts(self) -> dict[str, int]:
        """Return the counters of the source by name, for the summary of a run."""
        return {"dropped": self.dropped, "reconnects": self.reconnects}

    def notes(self) -> list[str]:
        """Return log lines about the source for commands to print: what it gives and leaves out."""
        return []

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Yield frames until the source ends or `stop()` is called.

        Raises CameraError for a source that does not work, or no longer.
        """

    def pending(self) -> object | None:
        """Return what is equal while the same frame or failure waits for the consumer, or None."""
        return None

    def still_valid(self, frame: Frame) -> Frame | None:
        """Return a frame that was handed out and waited since then, if it may still be judged.

        Otherwise, return it without its image and with a fault, or None if it is left out. Any
        thread may call it.
        """
        return frame

    def stop(self) -> None:
        """End the iteration. Does not wait; any thread and a signal handler may call it."""
        self._stopped = True

    def close(self) -> None:
        """Stop, and release the source. May be called again, and from any thread."""
        self.stop()

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def camera_class(scheme: str) -> type[Camera]:
    """Import the class of a scheme of CAMERAS. Raises CameraError for an unknown scheme."""
    target: type[Camera] = resolve(CAMERAS, scheme, "camera", CameraError)
    return target


def missing(scheme: str) -> str | None:
    """Say what must be installed to use a camera of CAMERAS; None if nothing is missing."""
    try:
        return camera_class(scheme).missing()
    except ImportError as error:
        return str(error)


def open_camera(uri: str) -> Camera:
    """Open a camera by its URI, or by the plain path of a folder, a file or a device.

    `flawline.uris` says how the options are split from the path. Raises CameraError for an unknown
    scheme or option, for a missing package, and for a source that is known not to work before the
    first frame is requested.
    """
    if not uri.strip():
        raise CameraError(
            "the camera is empty; give a folder, an image, a video or a URI, and . for this folder"
        )
    try:
        scheme, path, values = _parse(uri)
        reason = missing(scheme)
        if reason is not None:
            raise CameraError(f"camera {without_secrets(uri)}: {reason}")
        target = camera_class(scheme)
        options = parse_options(target.Options, values)
    except OptionError as error:
        raise CameraError(f"camera {without_secrets(uri)}: {error}") from error
    create: Callable[[str, CameraOptions], Camera] = target
    name = options.name
    if name is not None and not re.fullmatch(NAME, name):
        raise CameraError(
            f"camera {without_secrets(uri)}: name must be 1 to 24 letters, digits, dots, hyphens "
            f"and underscores"
        )
    camera = create(path, options)
    camera.name = name
    if not camera.source:
        camera.source = without_secrets(uri)
    return camera


def _parse(uri: str) -> tuple[str, str, dict[str, str]]:
    """Split a URI into scheme, path and options."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return _parse_path(uri)
    scheme = scheme.lower()
    if _is_address(scheme):
        return scheme, *split_address(rest)
    path, options = split_options(rest)
    if scheme == "file":
        return _scheme_of_path(uri, path), path, options
    hint = hint_for_scheme(scheme)
    if scheme not in CAMERAS and hint is not None:
        raise CameraError(f"camera {scheme!r} is unknown; known: {', '.join(CAMERAS)}; {hint}")
    return scheme, path, options


def _is_address(scheme: str) -> bool:
    try:
        return scheme in CAMERAS and camera_class(scheme).is_address
    except ImportError:
        # `missing` says what is not there.
        return False


def _parse_path(uri: str) -> tuple[str, str, dict[str, str]]:
    """Split a plain path; a question mark starts the options, unless a file has it in its name."""
    path = uri
    query = ""
    if not Path(uri).exists():
        path, _, query = uri.partition("?")
    return _scheme_of_path(uri, path), path, parse_query(query)


def _scheme_of_path(uri: str, path: str) -> str:
    """Return the first scheme that opens a plain path. Raises CameraError if there is none."""
    file = Path(path)
    for scheme in CAMERAS:
        if camera_class(scheme).accepts_path(file):
            return scheme
    if not file.exists():
        hint = hint_for_missing_path(path)
        raise CameraError(f"camera {without_secrets(uri)}: there is no such file or folder; {hint}")
    if not file.is_file() and not file.is_dir():
        raise CameraError(f"camera {uri}: {hint_for_special_file(file)}")
    raise CameraError(f"camera {uri}: no camera opens this file; known: {', '.join(CAMERAS)}")
