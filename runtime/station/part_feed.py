"""Parts that are named from outside, one line each, as by a barcode scanner or another program."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from flawline import FlawlineError
from flawline.cameras import Camera, CameraError
from flawline.cameras.triggered import TriggeredCamera
from flawline.os_errors import reason_of, remedy_of
from flawline.runtime.console import warn

STDIN = "-"
CHUNK = 4096  # bytes


class PartFeedError(FlawlineError):
    """The names of parts cannot be read, or the camera has no use for them."""


class PartFeed:
    """Gives each line of a file to a triggered camera, or to several that see the same part.

    With `trigger=software`, a line sends the pulse, or those of all views, for the part of that
    name; an empty line does so for a part that is numbered. The camera ends when the file has ended
    and each part has its frame. With another trigger, a line names the next part, and empty lines
    are left out.

    `path` is a file, a named pipe or - for stdin. It is read in a thread. A named pipe never ends,
    so that one program after the other may write to it. Raises PartFeedError for a file that cannot
    be read, and for a camera that waits for no pulses.
    """

    def __init__(self, path: str, *cameras: Camera) -> None:
        self._cameras: list[TriggeredCamera] = []
        for camera in cameras:
            if not isinstance(camera, TriggeredCamera) or not camera.triggered:
                raise PartFeedError(
                    "--parts needs a camera that waits for pulses; add trigger=software or "
                    "trigger=line1 to the options of a camera that has them, or leave --parts out"
                )
            self._cameras.append(camera)
        self._path = path
        self._descriptor = _open(path)
        self._thread = threading.Thread(target=self._run, name="parts", daemon=True)

    def start(self) -> None:
        """Begin to read; the first line waits until the camera is open."""
        self._thread.start()

    def _run(self) -> None:
        # Those that are not there at the start give no frames, and need no pulses.
        cameras = wait_for_cameras(self._cameras)
        if not cameras:
            return
        try:
            for name in self._lines():
                send_part(cameras, name or None)
        except CameraError as error:
            warn(f"{error}; no more lines of --parts are read")
        except OSError as error:
            warn(f"--parts {self._path}: cannot be read any more ({reason_of(error)})")
        for camera in cameras:
            if camera.trigger == "software":
                camera.end_of_pulses()

    def _lines(self) -> Iterator[str]:
        """Yield the lines of the file, without the spaces around them.

        The descriptor is read directly: a thread that waits in a buffered stdin would end the
        process with a fatal error when the interpreter ends.
        """
        rest = b""
        while True:
            chunk = os.read(self._descriptor, CHUNK)
            *lines, rest = (rest + chunk).split(b"\n")
            if not chunk and rest:
                lines = [rest]
            for line in lines:
                yield line.decode("utf-8", errors="replace").strip()
            if not chunk:
                return


def wait_for_cameras(cameras: Iterable[TriggeredCamera]) -> list[TriggeredCamera]:
    """Wait until those with software pulses are open; leave out those that cannot be opened."""
    usable = []
    for camera in cameras:
        if camera.trigger != "software" or camera.wait_until_open():
            usable.append(camera)
    return usable


def send_part(cameras: Iterable[TriggeredCamera], name: str | None) -> None:
    """Send the software pulses of the next part, or name the next part of a line.

    Without a name, a part of software pulses is numbered, and one of a line keeps its number.
    """
    for camera in cameras:
        if camera.trigger == "software":
            for _ in range(camera.views):
                camera.pulse(name)
        elif name is not None:
            camera.announce(name)


def _open(path: str) -> int:
    """Return a descriptor for reading."""
    if path == STDIN:
        return 0
    try:
        # A named pipe that is open for writing as well does not end with its writer.
        is_pipe = stat.S_ISFIFO(Path(path).stat().st_mode)
        return os.open(path, os.O_RDWR if is_pipe else os.O_RDONLY)
    except OSError as error:
        raise PartFeedError(
            f"--parts {path}: cannot be read ({reason_of(error)}); {remedy_of(error)}"
        ) from error
