"""Any GStreamer pipeline, `gst://ELEMENT ! ELEMENT`, and cameras of a Jetson's CSI port, `csi://0`.

gst://v4l2src device=/dev/video0 ! image/jpeg ! jpegdec
csi://0?width=1920&height=1080&fps=30
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt

from flawline.cameras import CameraError, Frame
from flawline.cameras.clock import Clock
from flawline.cameras.grabbed import EndOfStream, Grabbed
from flawline.cameras.live import LiveCamera
from flawline.cameras.live_options import LiveOptions
from flawline.cameras.v4l2 import sensors
from flawline.options import option

INSTALL = (
    "needs GStreamer with PyGObject: apt install python3-gi gir1.2-gst-plugins-base-1.0 "
    "gstreamer1.0-plugins-good, and an environment made with python3 -m venv --system-site-packages"
)
CSI_ELEMENT = "nvarguscamerasrc"
# Properties of elements that hold a secret, as user-id and user-pw of rtspsrc.
SECRET = re.compile(r"user|pw|pass|secret|token|key|auth|location|uri", re.IGNORECASE)


@dataclass(frozen=True)
class GStreamerOptions(LiveOptions):
    """Options of the `gst` scheme."""

    ends: bool = option(
        False, "whether the stream may end; otherwise it is opened again at its end"
    )


@dataclass(frozen=True)
class CsiOptions(LiveOptions):
    """Options of the `csi` scheme."""

    width: int = option(1920, "pixels per row, at least 1")
    height: int = option(1080, "rows, at least 1")
    fps: int = option(30, "frames per second, at least 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("width", self.width), ("height", self.height), ("fps", self.fps)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1")


class GStreamer(LiveCamera):
    """The pictures of a pipeline. Its description ends before the sink, which is added.

    Pictures of 8 and 16 bits per pixel, grey, are taken as they are, and all others as BGR.
    `source` names the elements without their properties, which may hold a password.
    """

    usage: ClassVar[str] = "gst://v4l2src ! image/jpeg ! jpegdec"
    # Many of the devices that a pipeline may read are.
    exclusive: ClassVar[bool] = True
    Options: ClassVar[type[LiveOptions]] = GStreamerOptions

    def __init__(
        self, path: str, options: LiveOptions | None = None, clock: Clock | None = None
    ) -> None:
        self._options = options or self.Options()
        self._description = path
        tokens = _tokens(path)
        elements = [token for token in tokens if "=" not in token and token != "!"]
        super().__init__(f"gst://{' ! '.join(elements)}", self._options, clock)
        if not elements:
            raise CameraError("camera gst://: has no elements; write gst://ELEMENT ! ELEMENT")
        if "appsink" in elements:
            raise CameraError(f"camera {self.source}: leave out appsink, which is added")
        self._secrets = _secrets(tokens)

    @classmethod
    def missing(cls) -> str | None:
        from flawline.cameras.gst_pipeline import load_gstreamer

        try:
            load_gstreamer()
        except (ImportError, ValueError):
            return INSTALL
        return None

    @classmethod
    def example(cls, folder: Path) -> str | None:
        """Return the URI of a short test pattern."""
        return "gst://videotestsrc num-buffers=5 ! video/x-raw,width=64,height=48?ends=yes"

    @classmethod
    def broken_example(cls, folder: Path) -> str | None:
        """Return the URI of an element that does not exist."""
        return "gst://no_such_element"

    def _open(self) -> Any:
        from flawline.cameras.gst_pipeline import GstPipeline

        return GstPipeline(
            self._description, self.source, self._hide, self.clock, self.limits.keeps_all
        )

    def _hide(self, text: str) -> str:
        """Replace the values of the properties that may hold a secret in a text of GStreamer."""
        for secret in self._secrets:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
        return text

    def _grab(self, handle: Any) -> Grabbed | None:
        try:
            grabbed: Grabbed | None = handle.read()
            return grabbed
        except EndOfStream:
            if getattr(self._options, "ends", False):
                raise
            raise CameraError(f"camera {self.source}: the stream ended") from None

    def _convert(self, payload: Any) -> npt.NDArray[Any] | Frame:
        from flawline.cameras.gst_pipeline import image_of

        return image_of(payload)

    def _release(self, handle: Any) -> None:
        handle.close()


class Csi(GStreamer):
    """A camera at the CSI port of a Jetson, by its number."""

    untested: ClassVar[str | None] = "on a Jetson"
    usage: ClassVar[str] = "csi://0"
    Options: ClassVar[type[LiveOptions]] = CsiOptions

    def __init__(
        self, path: str, options: CsiOptions | None = None, clock: Clock | None = None
    ) -> None:
        chosen = options or CsiOptions()
        if not path.isdecimal():
            raise CameraError(f"camera csi://{path}: is not the number of a camera; write csi://0")
        super().__init__(csi_pipeline(path, chosen), chosen, clock)
        self.source = f"csi://{path}"

    @classmethod
    def missing(cls) -> str | None:
        reason = super().missing()
        if reason is not None:
            return reason
        from flawline.cameras.gst_pipeline import load_gstreamer

        if load_gstreamer().ElementFactory.find(CSI_ELEMENT) is None:
            return f"needs {CSI_ELEMENT} of GStreamer, which JetPack installs on a Jetson"
        return None

    @classmethod
    def connected(cls) -> list[str]:
        """Return the URIs of the sensors that have a driver, in the order of their numbers."""
        return [f"csi://{number}" for number in range(len(sensors()))]

    @classmethod
    def example(cls, folder: Path) -> str | None:
        return None

    @classmethod
    def broken_example(cls, folder: Path) -> str | None:
        return "csi://none"


def csi_pipeline(sensor: str, options: CsiOptions) -> str:
    """Return the description that NVIDIA gives for its camera stack: NV12 to BGRx on the GPU."""
    size = f"width={options.width},height={options.height}"
    return (
        f"{CSI_ELEMENT} sensor-id={sensor} ! "
        f"video/x-raw(memory:NVMM),{size},format=NV12,framerate={options.fps}/1 ! "
        f"nvvidconv ! video/x-raw,format=BGRx"
    )


def _tokens(description: str) -> list[str]:
    """Split a description as GStreamer does. Raises CameraError for a quote that is not closed."""
    try:
        return shlex.split(description)
    except ValueError:
        raise CameraError("camera gst://: a quotation mark is not closed; add it") from None


def _secrets(tokens: list[str]) -> list[str]:
    """Return the values of properties that may hold a secret, the longest first."""
    values = set()
    for token in tokens:
        name, _, value = token.partition("=")
        if value and SECRET.search(name):
            values.add(value)
    return sorted(values, key=len, reverse=True)
