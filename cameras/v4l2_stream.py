"""A running Video4Linux stream: frames out of buffers that the driver maps into the memory.

The driver fills the buffers in turn. Each is converted or copied once into the array that is handed
out, and then given back to the driver.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
from typing import Any

import numpy as np
import numpy.typing as npt

from flawline.cameras.grabbed import CorruptFrame, Grabbed
from flawline.cameras.v4l2_calls import (
    CAPTURE_PLANES,
    DAMAGED,
    DQBUF,
    MAPPED_MEMORY,
    QBUF,
    QUERYBUF,
    REQBUFS,
    STREAMOFF,
    STREAMON,
    TIME_IS_MONOTONIC,
    TIME_KIND,
    Buffer,
    Device,
    Plane,
    RequestBuffers,
    kind_of_buffers,
)
from flawline.cameras.v4l2_pixels import COMPRESSED
from flawline.cameras.v4l2_settings import SettingError, Wanted, set_format, set_rate

BUFFERS = 4
# A larger gap in the sequence numbers is a driver that began to count again.
MOST_MISSED = 10_000
SEQUENCE_NUMBERS = 1 << 32


class BufferStream:
    """The stream of an open device, which `close` closes. Not safe for use by several threads.

    The constructor sets format and rate. It and `start` raise SettingError, and OSError like all
    methods.
    """

    def __init__(self, device: Device, wanted: Wanted) -> None:
        self._device = device
        kind = kind_of_buffers(device)
        if kind is None:
            raise SettingError("this device file of a camera gives no images; give another one")
        self._kind = kind
        self.format = set_format(device, kind, wanted)
        self.fps = set_rate(device, kind, wanted, self.format)
        # The structures that a Buffer of several planes points to; all planes are in one here.
        self._plane = (Plane * 1)()
        self._maps: list[Any] = []
        self._views: list[npt.NDArray[np.uint8]] = []
        self._last: int | None = None
        self._missed = 0

    def __str__(self) -> str:
        given = self.format
        text = f"{given.name} {given.width}x{given.height}"
        if self.fps is not None:
            text += f", {self.fps:.4g} frames per second"
        return text

    def start(self) -> None:
        """Map the buffers of the driver and let it fill them."""
        request = RequestBuffers(BUFFERS, self._kind, MAPPED_MEMORY)
        try:
            self._device.call(REQBUFS, request)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise SettingError(
                    "its driver does not let its buffers be mapped; try gst://v4l2src device=FILE"
                ) from error
            raise
        try:
            for index in range(request.count):
                buffer = self._buffer(index)
                self._device.call(QUERYBUF, buffer)
                self._map(buffer)
                self._device.call(QBUF, self._buffer(index))
            self._device.call(STREAMON, ctypes.c_int(self._kind))
        except BaseException:
            self._stop()
            raise

    def wait(self, seconds: float) -> bool:
        """Wait until `read` does not block; return False if there is nothing yet."""
        return self._device.wait(seconds)

    def read(self, now: float) -> Grabbed:
        """Return the next frame, an image or the bytes of a JPEG picture. Call it after `wait`.

        `now` is the time of the monotonic clock. Raises CorruptFrame for a buffer that is damaged,
        and OSError if the camera is lost or the driver fails.
        """
        buffer = self._buffer(0)
        self._device.call(DQBUF, buffer)
        try:
            self._count(buffer.sequence)
            payload = self._pixels(buffer)
        finally:
            self._device.call(QBUF, self._buffer(buffer.index))
        missed = self._missed
        self._missed = 0
        return Grabbed(payload, _captured_at(buffer, now), missed)

    def close(self) -> None:
        """Stop the stream, free its buffers and close the device, also of a camera that is gone."""
        self._stop()
        self._device.close()

    def _stop(self) -> None:
        with contextlib.suppress(OSError):
            self._device.call(STREAMOFF, ctypes.c_int(self._kind))
        self._views.clear()
        for memory in self._maps:
            # Refused while an exception that is still alive refers to it, which then closes it.
            with contextlib.suppress(BufferError):
                memory.close()
        self._maps.clear()
        with contextlib.suppress(OSError):
            self._device.call(REQBUFS, RequestBuffers(0, self._kind, MAPPED_MEMORY))

    def _map(self, buffer: Buffer) -> None:
        length = buffer.length
        offset = buffer.m.offset
        if self._kind == CAPTURE_PLANES:
            length = self._plane[0].length
            offset = self._plane[0].m.mem_offset
        memory = self._device.map(length, offset)
        self._maps.append(memory)
        self._views.append(np.frombuffer(memory, np.uint8))

    def _buffer(self, index: int) -> Buffer:
        """Return the structure that names a buffer in a request."""
        buffer = Buffer(index=index, type=self._kind, memory=MAPPED_MEMORY)
        if self._kind == CAPTURE_PLANES:
            buffer.m.planes = ctypes.addressof(self._plane)
            buffer.length = len(self._plane)
        return buffer

    def _count(self, sequence: int) -> None:
        """Add up the frames that the driver could not deliver, by a gap in their numbers."""
        if self._last is not None:
            gap = (sequence - self._last - 1) % SEQUENCE_NUMBERS
            if gap <= MOST_MISSED:
                self._missed += gap
        self._last = sequence

    def _pixels(self, buffer: Buffer) -> npt.NDArray[Any] | bytes:
        """Return the image or the JPEG picture of a full buffer. Raises CorruptFrame."""
        if buffer.flags & DAMAGED:
            raise CorruptFrame("the driver marks it as damaged")
        start = 0
        end = buffer.bytesused
        if self._kind == CAPTURE_PLANES:
            start = self._plane[0].data_offset
            end = self._plane[0].bytesused
        if end <= start:
            raise CorruptFrame("the buffer is empty")
        data = self._views[buffer.index][start:end]
        if self.format.name in COMPRESSED:
            # Decoding is left to the consumer, who does not take every frame.
            return bytes(data)
        try:
            return self.format.image(data)
        except ValueError as error:
            raise CorruptFrame(str(error)) from None


def _captured_at(buffer: Buffer, now: float) -> float:
    """Return when the driver got the frame, on the monotonic clock, or `now` if it is unknown."""
    captured = buffer.seconds + buffer.microseconds / 1e6
    if buffer.flags & TIME_KIND != TIME_IS_MONOTONIC or captured == 0:
        return now
    return float(min(captured, now))
