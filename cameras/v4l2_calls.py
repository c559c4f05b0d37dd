"""The system calls of Video4Linux: structures, request numbers, and an open device file.

The structures and numbers are those of linux/videodev2.h on 64-bit Linux, where all processors that
Flawline runs on have the same. What the calls are made for is in the other v4l2 files; tests
replace `Device`.

The libraries for Python that offer this (linuxpy, v4l2py, v4l2-python3) have the GPL as licence,
which Flawline cannot require. PyAV knows neither the sequence numbers of the frames nor 10 and 12
bits, and OpenCV also hides the time stamps and the damage that the driver reports.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
from ctypes import c_char, c_long, c_ubyte, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any

# Fields `capabilities` and `device_caps` of Capability.
CAN_CAPTURE = 0x00000001
CAN_CAPTURE_PLANES = 0x00001000
HAS_DEVICE_CAPABILITIES = 0x80000000
# Types of buffers: one memory area per frame, or one for each plane of its format.
CAPTURE = 1
CAPTURE_PLANES = 9
MAPPED_MEMORY = 1
# Fields of a picture that come in different buffers or one below the other; see enum v4l2_field.
SEPARATE_FIELDS = (5, 6, 7)
# Types of FrameSize and FrameInterval; the two others are ranges.
DISCRETE = 1
RATE_CAN_BE_SET = 0x1000  # field `capability` of Parameters
# Field `flags` of Buffer.
DAMAGED = 0x00000040
TIME_KIND = 0x0000E000
TIME_IS_MONOTONIC = 0x00002000

MOST_PLANES = 8


class Capability(ctypes.Structure):
    """struct v4l2_capability"""

    _fields_ = (
        ("driver", c_char * 16),
        ("card", c_char * 32),
        ("bus_info", c_char * 32),
        ("version", c_uint32),
        ("capabilities", c_uint32),
        ("device_caps", c_uint32),
        ("reserved", c_uint32 * 3),
    )


class FormatDescription(ctypes.Structure):
    """struct v4l2_fmtdesc"""

    _fields_ = (
        ("index", c_uint32),
        ("type", c_uint32),
        ("flags", c_uint32),
        ("description", c_char * 32),
        ("pixelformat", c_uint32),
        ("mbus_code", c_uint32),
        ("reserved", c_uint32 * 3),
    )


class FrameSize(ctypes.Structure):
    """struct v4l2_frmsizeenum

    `values` are width and height, or the smallest, the largest and the step of the width, and then
    those of the height.
    """

    _fields_ = (
        ("index", c_uint32),
        ("pixel_format", c_uint32),
        ("type", c_uint32),
        ("values", c_uint32 * 6),
        ("reserved", c_uint32 * 2),
    )


class FrameInterval(ctypes.Structure):
    """struct v4l2_frmivalenum

    `values` are numerator and denominator of the seconds per frame, or the three pairs of a range.
    """

    _fields_ = (
        ("index", c_uint32),
        ("pixel_format", c_uint32),
        ("width", c_uint32),
        ("height", c_uint32),
        ("type", c_uint32),
        ("values", c_uint32 * 6),
        ("reserved", c_uint32 * 2),
    )


class Pixels(ctypes.Structure):
    """The first fields of struct v4l2_pix_format"""

    _fields_ = (
        ("width", c_uint32),
        ("height", c_uint32),
        ("pixelformat", c_uint32),
        ("field", c_uint32),
        ("bytesperline", c_uint32),
        ("sizeimage", c_uint32),
    )


class PlaneFormat(ctypes.Structure):
    """struct v4l2_plane_pix_format"""

    _fields_ = (
        ("sizeimage", c_uint32),
        ("bytesperline", c_uint32),
        ("reserved", c_uint16 * 6),
    )


class PixelsOfPlanes(ctypes.Structure):
    """The first fields of struct v4l2_pix_format_mplane"""

    _fields_ = (
        ("width", c_uint32),
        ("height", c_uint32),
        ("pixelformat", c_uint32),
        ("field", c_uint32),
        ("colorspace", c_uint32),
        ("plane_fmt", PlaneFormat * MOST_PLANES),
        ("num_planes", c_ubyte),
    )


class FormatUnion(ctypes.Union):
    """The union of struct v4l2_format, of 200 bytes"""

    _fields_ = (
        ("pix", Pixels),
        ("pix_mp", PixelsOfPlanes),
        ("raw", c_uint64 * 25),
    )


class Format(ctypes.Structure):
    """struct v4l2_format"""

    _fields_ = (("type", c_uint32), ("fmt", FormatUnion))


class Parameters(ctypes.Structure):
    """struct v4l2_streamparm with struct v4l2_captureparm"""

    _fields_ = (
        ("type", c_uint32),
        ("capability", c_uint32),
        ("capturemode", c_uint32),
        ("numerator", c_uint32),
        ("denominator", c_uint32),
        ("other", c_uint32 * 46),
    )


class RequestBuffers(ctypes.Structure):
    """struct v4l2_requestbuffers"""

    _fields_ = (
        ("count", c_uint32),
        ("type", c_uint32),
        ("memory", c_uint32),
        ("capabilities", c_uint32),
        ("flags", c_uint32),
    )


class PlaneUnion(ctypes.Union):
    """The union of struct v4l2_plane"""

    _fields_ = (("mem_offset", c_uint32), ("raw", c_uint64))


class Plane(ctypes.Structure):
    """struct v4l2_plane"""

    _fields_ = (
        ("bytesused", c_uint32),
        ("length", c_uint32),
        ("m", PlaneUnion),
        ("data_offset", c_uint32),
        ("reserved", c_uint32 * 11),
    )


class BufferUnion(ctypes.Union):
    """The union of struct v4l2_buffer"""

    _fields_ = (("offset", c_uint32), ("planes", c_void_p))


class Buffer(ctypes.Structure):
    """struct v4l2_buffer"""

    _fields_ = (
        ("index", c_uint32),
        ("type", c_uint32),
        ("bytesused", c_uint32),
        ("flags", c_uint32),
        ("field", c_uint32),
        ("seconds", c_long),
        ("microseconds", c_long),
        ("timecode", c_uint32 * 4),
        ("sequence", c_uint32),
        ("memory", c_uint32),
        ("m", BufferUnion),
        ("length", c_uint32),
        ("reserved2", c_uint32),
        ("request_fd", c_uint32),
    )


# _IOW, _IOR and _IOWR of asm-generic/ioctl.h, for the letter V.
WRITES = 1
READS = 2


def _request(direction: int, number: int, structure: type[Any]) -> int:
    return direction << 30 | ctypes.sizeof(structure) << 16 | ord("V") << 8 | number


QUERYCAP = _request(READS, 0, Capability)
ENUM_FMT = _request(READS | WRITES, 2, FormatDescription)
G_FMT = _request(READS | WRITES, 4, Format)
S_FMT = _request(READS | WRITES, 5, Format)
REQBUFS = _request(READS | WRITES, 8, RequestBuffers)
QUERYBUF = _request(READS | WRITES, 9, Buffer)
QBUF = _request(READS | WRITES, 15, Buffer)
DQBUF = _request(READS | WRITES, 17, Buffer)
STREAMON = _request(WRITES, 18, ctypes.c_int)
STREAMOFF = _request(WRITES, 19, ctypes.c_int)
G_PARM = _request(READS | WRITES, 21, Parameters)
S_PARM = _request(READS | WRITES, 22, Parameters)
ENUM_FRAMESIZES = _request(READS | WRITES, 74, FrameSize)
ENUM_FRAMEINTERVALS = _request(READS | WRITES, 75, FrameInterval)


class Device:
    """An open device file. Every method raises OSError."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def call(self, request: int, structure: Any) -> None:
        """Make a request with one of the structures, which the driver may change."""
        while True:
            try:
                fcntl.ioctl(self._descriptor, request, structure)
            except InterruptedError:
                continue
            return

    def map(self, length: int, offset: int) -> Any:
        """Map a buffer of the driver for reading; the object is closed with its `close`."""
        return mmap.mmap(self._descriptor, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset)

    def wait(self, seconds: float) -> bool:
        """Wait until a buffer is full, or an error is to be reported; False if there is neither."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(round(1e3 * seconds)))

    def close(self) -> None:
        """Close the file; the driver then stops the stream."""
        os.close(self._descriptor)


def kind_of_buffers(device: Device) -> int | None:
    """Return the type of the buffers that a camera fills; None for a device without images.

    Raises OSError for what is no device of Video4Linux.
    """
    found = Capability()
    device.call(QUERYCAP, found)
    flags = found.capabilities
    if flags & HAS_DEVICE_CAPABILITIES:
        flags = found.device_caps
    if flags & CAN_CAPTURE:
        return CAPTURE
    if flags & CAN_CAPTURE_PLANES:
        return CAPTURE_PLANES
    return None
