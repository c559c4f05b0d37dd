"""Basler cameras, GigE and USB, through pypylon.

basler://   basler://24012345?exposure_us=500&pixel_format=Mono12   basler://0?trigger=line1

Without a camera, the environment variable PYLON_CAMEMU=1 gives an emulated one.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from flawline.cameras import CameraError
from flawline.cameras.clock import Clock
from flawline.cameras.devices import Device, choose_device
from flawline.cameras.genicam_pixels import PixelFormat
from flawline.cameras.genicam_settings import GenicamOptions, Settings, first_line
from flawline.cameras.parts import Block
from flawline.cameras.triggered import POLL_S, READY_S, TriggeredCamera
from flawline.extras import missing_package

EMULATION = "PYLON_CAMEMU"
GIGE = "BaslerGigE"
# The block number of a buffer that has none.
NO_NUMBER = 2**64 - 1
HINT = (
    "check cable and power, for GigE the IP address of the camera, and for USB the udev rules; "
    "PYLON_CAMEMU=1 emulates a camera"
)
IN_USE = ("controlled by another application", "exclusively opened by another client")
FORBIDDEN = ("access denied", "permission", "not permitted", "insufficient rights")


def load_pylon() -> Any:
    """Import pypylon's module. Raises ImportError."""
    with warnings.catch_warnings():
        # With warnings as errors, its warnings end the process with a segmentation fault.
        warnings.simplefilter("ignore")
        from pypylon import pylon
    return pylon


def find_devices() -> list[Device]:
    """Return the cameras that are connected, which takes a fraction of a second."""
    devices = []
    for info in load_pylon().TlFactory.GetInstance().EnumerateDevices():
        name = info.GetUserDefinedName()
        devices.append(Device(info.GetSerialNumber(), name, info.GetModelName(), info))
    return devices


@dataclass
class _Open:
    """An open camera, the pixel format of its buffers, and whether it is a GigE camera."""

    camera: Any
    pixel_format: PixelFormat
    is_gige: bool


class _PylonFeatures:
    """Implements `genicam_settings.Features`."""

    def __init__(self, camera: Any) -> None:
        self._nodes = camera.GetNodeMap()

    def has(self, name: str) -> bool:
        node = self._nodes.GetNode(name)
        return bool(node.IsValid() and node.IsWritable())

    def read(self, name: str) -> str:
        return str(self._nodes.GetNode(name).ToString())

    def write(self, name: str, value: str) -> None:
        self._nodes.GetNode(name).FromString(value)

    def execute(self, name: str) -> None:
        self._nodes.GetNode(name).Execute()


class Basler(TriggeredCamera):
    """A camera by its serial number, by the name that it was given, or by its position.

    Without one of them, the only camera is opened. The images have the bits that the camera sends:
    Mono12 gives 12 bits in 16-bit pixels. A buffer that was not received as a whole is counted and
    never judged; for a triggered camera it is the fault of its part.
    """

    untested: ClassVar[str | None] = "on a real camera, only on pylon's emulation"
    Options: ClassVar[type[GenicamOptions]] = GenicamOptions
    usage: ClassVar[str] = "basler://SERIAL"
    exclusive: ClassVar[bool] = True
    # `_fire` waits until the camera is ready for the next pulse.
    most_in_flight = 8

    def __init__(
        self, path: str = "", options: GenicamOptions | None = None, clock: Clock | None = None
    ) -> None:
        self._options = options or GenicamOptions()
        super().__init__(f"basler://{path}", self._options, clock)
        self._wanted = path

    @classmethod
    def missing(cls) -> str | None:
        try:
            load_pylon()
        except ImportError:
            return missing_package("pypylon")
        return None

    @classmethod
    def connected(cls) -> list[str]:
        """Return the URIs of the cameras that pylon finds."""
        return [f"basler://{device.serial}" for device in find_devices()]

    @classmethod
    def example(cls, folder: Path) -> str | None:
        """Return the URI of the first emulated camera; None where none is emulated."""
        if not os.environ.get(EMULATION):
            return None
        return "basler://0815-0000?width=64&height=48&fps=500"

    @classmethod
    def broken_example(cls, folder: Path) -> str:
        """Return the URI of a camera that is not connected."""
        return "basler://no-such-camera"

    def _open(self) -> _Open:
        pylon = load_pylon()
        device = choose_device(find_devices(), self._wanted, "basler", HINT)
        try:
            factory = pylon.TlFactory.GetInstance()
            camera = pylon.InstantCamera(factory.CreateDevice(device.entry))
            camera.Open()
        except Exception as error:
            raise self._open_error(error) from error
        try:
            return self._start_grabbing(camera, device)
        except BaseException:
            camera.Close()
            raise

    def _start_grabbing(self, camera: Any, device: Device) -> _Open:
        pylon = load_pylon()
        pixel_format = Settings(_PylonFeatures(camera), self._options, self.source).apply()
        # pylon's strategy for the newest image would leave out failed buffers without a report.
        camera.StartGrabbing(pylon.GrabStrategy_OneByOne)
        return _Open(camera, pixel_format, device.entry.GetDeviceClass() == GIGE)

    def _open_error(self, error: Exception) -> CameraError:
        text = str(error).casefold()
        remedy = HINT
        if any(words in text for words in IN_USE):
            remedy = "it is used by another program; close that program"
        elif any(words in text for words in FORBIDDEN):
            remedy = "this user may not use it; install pylon's udev rules, and connect it again"
        return CameraError(
            f"camera {self.source}: cannot be opened ({first_line(error)}); {remedy}"
        )

    def _first_block(self, handle: _Open) -> int:
        return 1 if handle.is_gige else 0

    def _take(self, handle: _Open) -> Block | None:
        pylon = load_pylon()
        milliseconds = round(1e3 * POLL_S)
        result = handle.camera.RetrieveResult(milliseconds, pylon.TimeoutHandling_Return)
        if not result.IsValid():
            if handle.camera.IsCameraDeviceRemoved():
                raise CameraError(f"camera {self.source}: was disconnected; check cable and power")
            return None
        try:
            if self._is_outdated(handle, result):
                return None
            return self._block(handle, result)
        finally:
            result.Release()

    def _is_outdated(self, handle: _Open, result: Any) -> bool:
        """Tell whether a running camera has a newer image, so that this one is not converted.

        The gap in the block numbers counts it as dropped.
        """
        if self.limits.keeps_all or not result.GrabSucceeded():
            return False
        return bool(handle.camera.NumReadyBuffers.Value > 0)

    def _block(self, handle: _Open, result: Any) -> Block:
        number = self._number(handle, result)
        if not result.GrabSucceeded():
            reason = result.ErrorDescription.rstrip(". ")
            return Block(None, number, f"the camera's buffer cannot be used: {reason}")
        # The view is of a buffer that the camera fills again.
        with result.GetImageMemoryView() as view:
            buffer = np.frombuffer(view, np.uint8)
            try:
                image = handle.pixel_format.image(
                    buffer, result.Width, result.Height, result.PaddingX
                )
            except ValueError as error:
                return Block(None, number, str(error))
            finally:
                del buffer
        return Block(image, number, bit_depth=handle.pixel_format.bits)

    def _number(self, handle: _Open, result: Any) -> int | None:
        number = int(result.BlockID)
        # GigE cameras that do not count their blocks give 0.
        if number == NO_NUMBER or (number == 0 and handle.is_gige):
            return None
        return number

    def _fire(self, handle: _Open) -> None:
        pylon = load_pylon()
        milliseconds = round(1e3 * READY_S)
        ready = handle.camera.WaitForFrameTriggerReady(milliseconds, pylon.TimeoutHandling_Return)
        if not ready:
            raise CameraError("the camera was not ready when the pulse was sent")
        handle.camera.ExecuteSoftwareTrigger()

    def _release(self, handle: _Open) -> None:
        handle.camera.Close()
