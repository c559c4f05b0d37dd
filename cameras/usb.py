"""USB cameras, and all others that have a driver of Video4Linux.

usb://0   /dev/video2   /dev/v4l/by-id/NAME   usb://0?pixel_format=MJPG&width=1920&height=1080&fps=30
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt

from flawline.cameras import CameraError, Frame, events
from flawline.cameras.clock import Clock
from flawline.cameras.grabbed import CorruptFrame, Grabbed
from flawline.cameras.live import LiveCamera
from flawline.cameras.live_options import LiveOptions
from flawline.cameras.v4l2 import connected_cameras, is_camera, problem_of, reason_of
from flawline.cameras.v4l2_calls import Device
from flawline.cameras.v4l2_pixels import READ, bits_of, decode_picture
from flawline.cameras.v4l2_settings import SettingError, Wanted
from flawline.cameras.v4l2_stream import BufferStream
from flawline.options import option
from flawline.uris import quote_path

POLL_S = 0.1  # seconds that `_grab` waits at most


@dataclass(frozen=True)
class UsbOptions(LiveOptions):
    """Options of the `usb` scheme. None leaves the setting to the driver."""

    pixel_format: str | None = option(None, "FOURCC name, such as MJPG, YUYV, GREY or Y16")
    width: int | None = option(None, "pixels per row, at least 1")
    height: int | None = option(None, "rows, at least 1")
    fps: int | None = option(None, "frames per second, at least 1")
    bits: int | None = option(
        None, "significant bits of 16-bit pixels, where the camera uses fewer than it declares"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        values = {"width": self.width, "height": self.height, "fps": self.fps}
        for name, value in values.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.pixel_format is not None and self.pixel_format not in READ:
            raise ValueError(f"pixel_format must be one of {', '.join(READ)}")
        if self.bits is not None and not 8 <= self.bits <= 16:
            raise ValueError("bits must be from 8 to 16")


class Usb(LiveCamera):
    """A camera by its number or device file, or by a link to that file.

    An image format, size or rate that was requested and that the driver does not give is an error.
    """

    untested: ClassVar[str | None] = "on a real camera, only on the simulated one of Linux"
    Options: ClassVar[type[UsbOptions]] = UsbOptions
    usage: ClassVar[str] = "usb://0, /dev/video0"
    exclusive: ClassVar[bool] = True

    def __init__(
        self, path: str, options: UsbOptions | None = None, clock: Clock | None = None
    ) -> None:
        self._options = options or UsbOptions()
        super().__init__(f"usb://{path}", self._options, clock)
        self._file = f"/dev/video{path}" if path.isdecimal() else path
        self._bits = 8
        self._given = ""
        problem = problem_of(self._file)
        if problem is not None:
            raise CameraError(f"camera {self.source}: {problem}")

    @classmethod
    def accepts_path(cls, path: Path) -> bool:
        return is_camera(path)

    @classmethod
    def connected(cls) -> list[str]:
        """Return the URIs of the cameras that are connected and that no other program uses."""
        return [f"usb://{quote_path(path)}" for path in connected_cameras()]

    @classmethod
    def broken_example(cls, folder: Path) -> str:
        """Return the URI of a device file that does not exist."""
        return f"usb://{folder}/video63"

    def _open(self) -> BufferStream:
        try:
            stream = self._start_stream()
        except SettingError as error:
            raise CameraError(f"camera {self.source}: {error}") from None
        except OSError as error:
            raise CameraError(f"camera {self.source}: {reason_of(self._file, error)}") from error
        self._report_settings(str(stream))
        return stream

    def _start_stream(self) -> BufferStream:
        options = self._options
        wanted = Wanted(options.pixel_format, options.width, options.height, options.fps)
        device = Device(self._file)
        try:
            stream = BufferStream(device, wanted)
            bits = bits_of(stream.format.name)
            if options.bits is not None and options.bits > bits:
                raise SettingError(f"gives {stream}, of {bits} bits; leave out bits={options.bits}")
            self._bits = options.bits or bits
            stream.start()
            return stream
        except BaseException:
            device.close()
            raise

    def _report_settings(self, given: str) -> None:
        """Report what the driver gives, at the start and when it changed."""
        if given == self._given:
            return
        self._given = given
        with self._changed:
            self._events.add(events.SETTINGS, f"gives {given}")
            self._changed.notify_all()

    def _grab(self, handle: BufferStream) -> Grabbed | None:
        if not handle.wait(POLL_S):
            return None
        try:
            return handle.read(self.clock.monotonic())
        except OSError as error:
            reason = f"stopped giving frames ({error.strerror}); check the cable"
            if error.errno == errno.ENODEV:
                reason = "was disconnected; check the cable"
            raise CameraError(f"camera {self.source}: {reason}") from error

    def _convert(self, payload: npt.NDArray[Any] | bytes) -> Frame:
        image = payload
        if isinstance(image, bytes):
            try:
                image = decode_picture(image)
            except ValueError as error:
                raise CorruptFrame(str(error)) from None
        return Frame(self.source, 0, image, bit_depth=self._bits)

    def _release(self, handle: BufferStream) -> None:
        handle.close()
