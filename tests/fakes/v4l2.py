"""A driver of Video4Linux for tests: it answers the calls of `v4l2_calls.Device` as Linux does.

`SimulatedCamera.open` takes the place of the class Device. A test delivers frames to the camera, as
its sensor would, and unplugs it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
import time
from collections import deque
from typing import Any

import pytest

from flawline.cameras import usb, v4l2
from flawline.cameras import v4l2_calls as calls
from flawline.cameras.v4l2_pixels import fourcc_code, fourcc_name

# A device file that every machine has. Its driver is never called.
PATH = "/dev/null"
WAIT_S = 10.0
PAGE = mmap.PAGESIZE
YUYV_AND_MJPG = {"YUYV": [(64, 48), (32, 24)], "MJPG": [(64, 48), (128, 96)]}


class SimulatedCamera:
    """A camera that is connected, and the state of its driver, which all who open it share."""

    def __init__(
        self,
        formats: dict[str, list[tuple[int, int]]] | None = None,
        kind: int = calls.CAPTURE,
        padding: int = 0,
    ) -> None:
        self.formats = formats or YUYV_AND_MJPG
        self.kind = kind
        self.padding = padding
        self.rates = [30, 15]
        # Whether the driver lists ranges, which here are from the first to the last value.
        self.has_ranges = False
        self.rate = 30
        self.name = next(iter(self.formats))
        self.size = self.formats[self.name][0]
        # Set by a test: the error of each request that the driver then refuses.
        self.refused: dict[int, int] = {}
        self.field = 1
        # Bytes before the pixels, of a camera with several memory areas per frame.
        self.data_offset = 0
        self.is_connected = True
        self.changed = threading.Condition()
        self.memory: list[Any] = []
        self.queued: deque[int] = deque()
        self.full: deque[tuple[int, int, int, int, float]] = deque()
        self.sequence = 0
        self.owner: Any = None
        self.opened: list[FakeDevice] = []

    def open(self, path: str) -> FakeDevice:
        if not self.is_connected:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        device = FakeDevice(self)
        self.opened.append(device)
        return device

    def deliver(
        self,
        data: bytes,
        flags: int = 0,
        captured: float | None = None,
        used: int | None = None,
        time_kind: int = calls.TIME_IS_MONOTONIC,
    ) -> int:
        """Fill the next buffer, when the driver has one; return the sequence number."""
        if captured is None:
            captured = time.monotonic()
        with self.changed:
            assert self.changed.wait_for(lambda: bool(self.queued), WAIT_S), "no buffer is queued"
            index = self.queued.popleft()
            start = self.data_offset
            self.memory[index][start : start + len(data)] = data
            used = start + (len(data) if used is None else used)
            self.full.append((index, used, flags | time_kind, self.sequence, captured))
            self.sequence += 1
            self.changed.notify_all()
            return self.sequence - 1

    def lose(self, count: int) -> None:
        """Let the sensor take frames for which there is no buffer."""
        self.sequence += count

    def unplug(self) -> None:
        with self.changed:
            self.is_connected = False
            self.owner = None
            self.queued.clear()
            self.changed.notify_all()

    def plug(self) -> None:
        """Connect the camera again: a new device, with the settings of the start."""
        with self.changed:
            self.is_connected = True
            self.full.clear()
            self.sequence = 0


class FakeDevice:
    """Implements v4l2_calls.Device for one SimulatedCamera."""

    def __init__(self, camera: SimulatedCamera) -> None:
        self.camera = camera
        self.requests: list[int] = []
        self.is_open = True
        self.answers = {
            calls.QUERYCAP: self.capability,
            calls.ENUM_FMT: self.list_formats,
            calls.ENUM_FRAMESIZES: self.list_sizes,
            calls.ENUM_FRAMEINTERVALS: self.list_rates,
            calls.G_FMT: self.get_format,
            calls.S_FMT: self.set_format,
            calls.G_PARM: self.get_rate,
            calls.S_PARM: self.set_rate,
            calls.REQBUFS: self.request_buffers,
            calls.QUERYBUF: self.query_buffer,
            calls.QBUF: self.queue,
            calls.DQBUF: self.dequeue,
            calls.STREAMON: self.stream,
            calls.STREAMOFF: self.stop,
        }

    def call(self, request: int, structure: Any) -> None:
        assert self.is_open, "a closed device is called"
        camera = self.camera
        with camera.changed:
            self.requests.append(request)
            if not camera.is_connected:
                refuse(errno.ENODEV)
            if request in camera.refused:
                refuse(camera.refused[request])
            self.answers[request](structure)

    def map(self, length: int, offset: int) -> Any:
        assert offset % PAGE == 0
        memory = self.camera.memory[offset // PAGE]
        assert length == len(memory)
        return memory

    def wait(self, seconds: float) -> bool:
        camera = self.camera

        def is_ready() -> bool:
            return bool(camera.full) or not camera.is_connected

        with camera.changed:
            return camera.changed.wait_for(is_ready, seconds)

    def close(self) -> None:
        assert self.is_open
        self.is_open = False
        if self.camera.owner is self:
            self.camera.owner = None

    # The answers of the driver.

    def capability(self, answer: calls.Capability) -> None:
        can = {calls.CAPTURE: calls.CAN_CAPTURE, calls.CAPTURE_PLANES: calls.CAN_CAPTURE_PLANES}
        # The hardware has a second device, for metadata.
        answer.capabilities = calls.HAS_DEVICE_CAPABILITIES | calls.CAN_CAPTURE | 0x00800000
        answer.device_caps = can.get(self.camera.kind, 0x00800000)

    def list_formats(self, answer: calls.FormatDescription) -> None:
        assert answer.type == self.camera.kind
        answer.pixelformat = fourcc_code(entry(list(self.camera.formats), answer.index))

    def list_sizes(self, answer: calls.FrameSize) -> None:
        sizes = self.camera.formats[fourcc_name(answer.pixel_format)]
        width, height = entry(sizes, answer.index)
        if self.camera.has_ranges:
            answer.type = calls.DISCRETE + 2
            answer.values[:] = (width, sizes[-1][0], 2, height, sizes[-1][1], 2)
            return
        answer.type = calls.DISCRETE
        answer.values[0] = width
        answer.values[1] = height

    def list_rates(self, answer: calls.FrameInterval) -> None:
        if self.camera.has_ranges:
            answer.type = calls.DISCRETE + 2
            answer.values[:] = (1, self.camera.rates[0], 1, self.camera.rates[-1], 1, 1)
            return
        answer.values[1] = entry(self.camera.rates, answer.index)
        answer.values[0] = 1
        answer.type = calls.DISCRETE

    def get_format(self, answer: calls.Format) -> None:
        assert answer.type == self.camera.kind
        self.write_format(answer)

    def set_format(self, request: calls.Format) -> None:
        """Take the nearest format and size, as drivers do."""
        camera = self.camera
        if camera.owner not in (None, self):
            refuse(errno.EBUSY)
        pixels = request.fmt.pix
        if camera.kind == calls.CAPTURE_PLANES:
            pixels = request.fmt.pix_mp
        name = fourcc_name(pixels.pixelformat)
        if name in camera.formats:
            camera.name = name
        else:
            camera.name = next(iter(camera.formats))
        area = pixels.width * pixels.height
        sizes = camera.formats[camera.name]
        camera.size = min(sizes, key=lambda size: abs(size[0] * size[1] - area))
        self.write_format(request)

    def write_format(self, answer: calls.Format) -> None:
        camera = self.camera
        if camera.kind == calls.CAPTURE_PLANES:
            pixels = answer.fmt.pix_mp
            pixels.num_planes = 1
            plane = pixels.plane_fmt[0]
        else:
            pixels = plane = answer.fmt.pix
        pixels.width, pixels.height = camera.size
        pixels.pixelformat = fourcc_code(camera.name)
        pixels.field = camera.field
        plane.bytesperline = self.row_bytes()
        plane.sizeimage = self.buffer_bytes()

    def row_bytes(self) -> int:
        per_pixel = {"GREY": 1, "NV12": 1, "YU12": 1, "MJPG": 0, "BGR3": 3}
        size: int = self.camera.size[0] * per_pixel.get(self.camera.name, 2)
        return size + self.camera.padding

    def buffer_bytes(self) -> int:
        width, height = self.camera.size
        return height * max(3 * width, self.row_bytes()) + self.camera.data_offset

    def get_rate(self, answer: calls.Parameters) -> None:
        answer.capability = calls.RATE_CAN_BE_SET
        answer.numerator = 1001
        answer.denominator = 1001 * self.camera.rate

    def set_rate(self, request: calls.Parameters) -> None:
        wanted = request.denominator / request.numerator
        self.camera.rate = min(self.camera.rates, key=lambda rate: abs(rate - wanted))
        self.get_rate(request)

    def request_buffers(self, request: calls.RequestBuffers) -> None:
        camera = self.camera
        assert (request.type, request.memory) == (camera.kind, calls.MAPPED_MEMORY)
        if camera.owner not in (None, self):
            refuse(errno.EBUSY)
        camera.owner = self if request.count else None
        camera.memory = [mmap.mmap(-1, self.buffer_bytes()) for _ in range(request.count)]

    def query_buffer(self, answer: calls.Buffer) -> None:
        self.check(answer)
        size = len(self.camera.memory[answer.index])
        offset = answer.index * PAGE
        if self.camera.kind == calls.CAPTURE_PLANES:
            plane = self.plane_of(answer)
            plane.length = size
            plane.m.mem_offset = offset
        else:
            answer.length = size
            answer.m.offset = offset

    def queue(self, buffer: calls.Buffer) -> None:
        self.check(buffer)
        assert buffer.index not in self.camera.queued
        self.camera.queued.append(buffer.index)
        self.camera.changed.notify_all()

    def dequeue(self, buffer: calls.Buffer) -> None:
        self.check(buffer)
        if not self.camera.full:
            refuse(errno.EAGAIN)
        buffer.index, used, buffer.flags, buffer.sequence, captured = self.camera.full.popleft()
        buffer.seconds = int(captured)
        buffer.microseconds = int(captured % 1 * 1e6)
        buffer.bytesused = used
        if self.camera.kind == calls.CAPTURE_PLANES:
            plane = self.plane_of(buffer)
            plane.data_offset = self.camera.data_offset
            plane.bytesused = used
            buffer.bytesused = 0

    def stream(self, kind: ctypes.c_int) -> None:
        assert kind.value == self.camera.kind
        assert self.camera.queued

    def stop(self, kind: ctypes.c_int) -> None:
        assert kind.value == self.camera.kind
        self.camera.queued.clear()

    def check(self, buffer: calls.Buffer) -> None:
        assert (buffer.type, buffer.memory) == (self.camera.kind, calls.MAPPED_MEMORY)

    def plane_of(self, buffer: calls.Buffer) -> calls.Plane:
        assert buffer.length == 1
        return calls.Plane.from_address(buffer.m.planes)


def refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))


def entry(values: list[Any], index: int) -> Any:
    """Return an entry of a list that the driver ends with an error."""
    if index >= len(values):
        refuse(errno.EINVAL)
    return values[index]


def connect(camera: SimulatedCamera, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let a device file be the camera; return its URI."""
    monkeypatch.setattr(usb, "Device", camera.open)
    monkeypatch.setattr(v4l2, "Device", camera.open)
    return f"usb://{PATH}"
