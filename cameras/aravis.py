"""GigE Vision and USB3 Vision cameras of any maker, through Aravis, without the maker's software.

aravis://SERIAL   aravis://SERIAL?trigger=line1&packet_size=8000

Aravis belongs to the operating system. `arv-fake-gv-camera-0.8 -i 127.0.0.1` simulates a camera.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from flawline.cameras import CameraError
from flawline.cameras.clock import Clock
from flawline.cameras.devices import Device, choose_device
from flawline.cameras.genicam_pixels import PixelFormat
from flawline.cameras.genicam_settings import GenicamOptions, Settings, first_line
from flawline.cameras.parts import Block
from flawline.cameras.triggered import POLL_S, TriggeredCamera

INSTALL = (
    "needs Aravis with PyGObject: apt install gir1.2-aravis-0.8 python3-gi, and an environment "
    "made with python3 -m venv --system-site-packages"
)
HINT = "check cable and power, and that the camera's address is in the network of this machine"
MICROSECONDS = 1_000_000
BUFFERS = 16
# Bytes. With the default of the kernel, nearly every frame of a fast camera lacks packets.
SMALLEST_SOCKET_BUFFER = 4_000_000
LOOPBACK = "127."
# Searching for cameras is not safe for use by several threads.
_SEARCH = threading.Lock()


@dataclass
class _Open:
    """An open camera with its stream; `lost` is set when it does not answer any more."""

    camera: Any
    stream: Any
    pixel_format: PixelFormat
    lost: threading.Event = field(default_factory=threading.Event)


class _DeviceFeatures:
    """Implements `genicam_settings.Features`."""

    def __init__(self, aravis: Any, device: Any) -> None:
        self._aravis = aravis
        self._device = device

    def has(self, name: str) -> bool:
        if not self._device.is_feature_available(name):
            return False
        access = self._device.get_feature(name).get_actual_access_mode()
        return bool(access != self._aravis.GcAccessMode.RO)

    def read(self, name: str) -> str:
        return str(self._device.get_feature(name).get_value_as_string())

    def write(self, name: str, value: str) -> None:
        node = self._device.get_feature(name)
        is_number = isinstance(node, (self._aravis.GcInteger, self._aravis.GcFloat))
        is_enumeration = isinstance(node, self._aravis.GcEnumeration)
        # Aravis writes numbers without comparing them with the limits of the camera.
        if (
            is_number
            and not is_enumeration
            and not node.get_min() <= float(value) <= node.get_max()
        ):
            raise ValueError(f"it must be from {node.get_min():g} to {node.get_max():g}")
        node.set_value_from_string(value)

    def execute(self, name: str) -> None:
        self._device.get_feature(name).execute()


class Aravis(TriggeredCamera):
    """A camera by its serial number, by its name in Aravis, or by its position.

    Without one of them, the only camera is opened. A frame of which packets were lost is counted
    and never judged; for a triggered camera it is the fault of its part.
    """

    untested: ClassVar[str | None] = "on a real camera, only on Aravis' simulated one"
    Options: ClassVar[type[GenicamOptions]] = GenicamOptions
    usage: ClassVar[str] = "aravis://SERIAL"
    exclusive: ClassVar[bool] = True

    def __init__(
        self, path: str = "", options: GenicamOptions | None = None, clock: Clock | None = None
    ) -> None:
        self._options = options or GenicamOptions()
        super().__init__(f"aravis://{path}", self._options, clock)
        self._wanted = path

    @classmethod
    def missing(cls) -> str | None:
        try:
            load_aravis()
        except (ImportError, ValueError):
            return INSTALL
        return None

    @classmethod
    def connected(cls) -> list[str]:
        """Return the URIs of the cameras that answer within a second."""
        return [f"aravis://{device.serial}" for device in find_devices()]

    @classmethod
    def broken_example(cls, folder: Path) -> str:
        """Return the URI of a camera that is not connected."""
        return "aravis://no-such-camera"

    def _open(self) -> _Open:
        aravis = load_aravis()
        device = choose_device(find_devices(), self._wanted, "aravis", HINT)
        identity, address = device.entry
        try:
            camera = aravis.Camera.new(identity)
        except Exception as error:
            raise CameraError(
                f"camera {self.source}: cannot be opened ({first_line(error)}); {HINT}"
            ) from error
        if camera.is_gv_device() and not camera.get_device().is_controller():
            raise CameraError(
                f"camera {self.source}: is used by another program; close that program"
            )
        try:
            return self._start_stream(aravis, camera, address)
        except BaseException:
            _leave(camera)
            raise

    def _start_stream(self, aravis: Any, camera: Any, address: str) -> _Open:
        device = camera.get_device()
        pixel_format = Settings(_DeviceFeatures(aravis, device), self._options, self.source).apply()
        try:
            if camera.is_gv_device() and address.startswith(LOOPBACK):
                # Packet sockets, which the superuser gets, receive nothing on the loopback device.
                camera.gv_set_stream_options(aravis.GvStreamOption.PACKET_SOCKET_DISABLED)
            stream = camera.create_stream(None, None)
            payload = camera.get_payload()
            if camera.is_gv_device():
                size = max(SMALLEST_SOCKET_BUFFER, 4 * payload)
                stream.set_property("socket-buffer", aravis.GvStreamSocketBuffer.FIXED)
                stream.set_property("socket-buffer-size", size)
            for _ in range(BUFFERS):
                stream.push_buffer(aravis.Buffer.new_allocate(payload))
            handle = _Open(camera, stream, pixel_format)
            device.connect("control-lost", lambda _device: handle.lost.set())
            camera.start_acquisition()
        except Exception as error:
            raise CameraError(
                f"camera {self.source}: cannot be started ({first_line(error)}); {HINT}"
            ) from error
        return handle

    def _take(self, handle: _Open) -> Block | None:
        buffer = handle.stream.timeout_pop_buffer(round(POLL_S * MICROSECONDS))
        if buffer is None:
            if handle.lost.is_set():
                raise CameraError(f"camera {self.source}: was disconnected; check cable and power")
            return None
        try:
            return self._block(handle, buffer)
        finally:
            handle.stream.push_buffer(buffer)

    def _block(self, handle: _Open, buffer: Any) -> Block | None:
        aravis = load_aravis()
        # GigE Vision has no block 0.
        number = buffer.get_frame_id() or None
        status = buffer.get_status()
        if status != aravis.BufferStatus.SUCCESS:
            return Block(None, number, f"the camera's buffer cannot be used: {status.value_nick}")
        waiting = handle.stream.get_n_buffers().n_output_buffers
        if not self.limits.keeps_all and waiting > 0:
            # A newer image waits. The gap in the block numbers counts this one as dropped.
            return None
        # PyGObject copies the data, which the image of a format without colour then is a view of.
        data = np.frombuffer(buffer.get_data(), np.uint8)
        try:
            image = handle.pixel_format.image(
                data, buffer.get_image_width(), buffer.get_image_height(), is_kept=True
            )
        except ValueError as error:
            return Block(None, number, str(error))
        return Block(image, number, bit_depth=handle.pixel_format.bits)

    def _fire(self, handle: _Open) -> None:
        handle.camera.software_trigger()

    def _release(self, handle: _Open) -> None:
        # A lost camera would let each call wait for its answer.
        if handle.lost.is_set():
            return
        try:
            handle.camera.stop_acquisition()
        finally:
            _leave(handle.camera)


def load_aravis() -> Any:
    """Import Aravis. Raises ImportError, or ValueError if its version is not there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gi

        gi.require_version("Aravis", "0.8")
        from gi.repository import Aravis as aravis
    return aravis


def find_devices() -> list[Device]:
    """Return the cameras that answer within a second. An entry is name and address."""
    aravis = load_aravis()
    devices = []
    with _SEARCH:
        aravis.update_device_list()
        for index in range(aravis.get_n_devices()):
            identity = aravis.get_device_id(index)
            address = aravis.get_device_address(index) or ""
            serial = aravis.get_device_serial_nbr(index) or identity
            model = aravis.get_device_model(index) or ""
            devices.append(Device(serial, identity, model, (identity, address)))
    return devices


def _leave(camera: Any) -> None:
    """Let other programs, and the next opening, control the camera."""
    if camera.is_gv_device():
        with contextlib.suppress(Exception):
            camera.get_device().leave_control()
