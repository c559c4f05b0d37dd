"""Pixel format, size and rate of a Video4Linux camera: requested, read back and compared.

A driver gives what is nearest to a request, without an error. Here, what was requested and is not
given is an error with the list of what the camera offers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from flawline.cameras.v4l2_calls import (
    CAPTURE_PLANES,
    DISCRETE,
    ENUM_FMT,
    ENUM_FRAMEINTERVALS,
    ENUM_FRAMESIZES,
    G_FMT,
    G_PARM,
    RATE_CAN_BE_SET,
    S_FMT,
    S_PARM,
    SEPARATE_FIELDS,
    Device,
    Format,
    FormatDescription,
    FrameInterval,
    FrameSize,
    Parameters,
)
from flawline.cameras.v4l2_pixels import READ, BufferFormat, fourcc_code, fourcc_name

# Entries of a list that a driver is asked for, and sizes of a format that a message names.
MOST_ENTRIES = 256
MOST_NAMED = 12
# Cameras round the rate, as 29.97 for 30.
SAME_RATE = 0.01


class SettingError(ValueError):
    """The camera does not give what was requested, or nothing that is read. One line."""


@dataclass(frozen=True)
class Wanted:
    """What was requested of the camera: FOURCC, pixels, frames per second; None is left to it."""

    pixel_format: str | None = None
    width: int | None = None
    height: int | None = None
    fps: int | None = None

    def __str__(self) -> str:
        values = {"pixel_format": self.pixel_format, "width": self.width, "height": self.height}
        return ", ".join(f"{name}={value}" for name, value in values.items() if value is not None)

    def is_met_by(self, name: str, width: int, height: int) -> bool:
        """Tell whether a pixel format and size are those that were requested."""
        pairs = ((self.pixel_format, name), (self.width, width), (self.height, height))
        return all(wanted in (None, given) for wanted, given in pairs)


def set_format(device: Device, kind: int, wanted: Wanted) -> BufferFormat:
    """Request a pixel format and a size; return what the driver gives.

    `kind` is the type of the buffers. Raises SettingError if that is not what was requested or is
    not read, and OSError where the driver refuses, as for a camera that another program uses.
    """
    request = Format(type=kind)
    device.call(G_FMT, request)
    pixels = _pixels(request)
    if wanted.pixel_format is not None:
        pixels.pixelformat = fourcc_code(wanted.pixel_format)
    if wanted.width is not None:
        pixels.width = wanted.width
    if wanted.height is not None:
        pixels.height = wanted.height
    pixels.field = 0
    for plane in _planes(request):
        # The driver computes these two for the new format.
        plane.bytesperline = 0
        plane.sizeimage = 0
    device.call(S_FMT, request)
    name = fourcc_name(pixels.pixelformat)
    given = f"{name} {pixels.width}x{pixels.height}"
    if not wanted.is_met_by(name, pixels.width, pixels.height):
        raise SettingError(f"gives {given} instead of {wanted}; {_offer(device, kind)}")
    if name not in READ:
        raise SettingError(
            f"gives {given}, which is not read; give pixel_format, and {_offer(device, kind)}"
        )
    planes = _planes(request)
    if len(planes) != 1:
        raise SettingError(f"gives {given} in {len(planes)} buffers; {_offer(device, kind)}")
    if pixels.field in SEPARATE_FIELDS:
        raise SettingError(f"gives {given} in half pictures (interlaced), which are not read")
    return BufferFormat(name, pixels.width, pixels.height, planes[0].bytesperline)


def set_rate(device: Device, kind: int, wanted: Wanted, given: BufferFormat) -> float | None:
    """Request the rate; return the one that the driver gives in frames per second, if it says so.

    Raises SettingError if it is not the requested one.
    """
    parameters = Parameters(type=kind)
    try:
        device.call(G_PARM, parameters)
        if wanted.fps is not None and parameters.capability & RATE_CAN_BE_SET:
            parameters.numerator = 1
            parameters.denominator = wanted.fps
            device.call(S_PARM, parameters)
    except OSError as error:
        if wanted.fps is not None:
            raise SettingError(
                f"does not let its rate be set ({error.strerror}); leave out fps"
            ) from error
        return None
    rate: float | None = None
    if parameters.numerator and parameters.denominator:
        rate = parameters.denominator / parameters.numerator
    if wanted.fps is None:
        return rate
    if not parameters.capability & RATE_CAN_BE_SET:
        raise SettingError("does not let its rate be set; leave out fps")
    if rate is None or abs(rate - wanted.fps) > SAME_RATE * wanted.fps:
        raise SettingError(
            f"gives {rate or 0:g} frames per second instead of {wanted.fps}; for {given.name} "
            f"{given.width}x{given.height} it offers {_rates(device, given)}"
        )
    return rate


def _pixels(request: Format) -> Any:
    """Return the part of the structure with the size, which depends on the type of the buffers."""
    if request.type == CAPTURE_PLANES:
        return request.fmt.pix_mp
    return request.fmt.pix


def _planes(request: Format) -> list[Any]:
    """Return the parts of the structure with the bytes of a row and of the buffer."""
    if request.type == CAPTURE_PLANES:
        pixels = request.fmt.pix_mp
        return list(pixels.plane_fmt[: pixels.num_planes])
    return [request.fmt.pix]


def _offer(device: Device, kind: int) -> str:
    """Return a list of the formats and sizes that the camera offers and that are read."""
    names_of_sizes: dict[str, list[str]] = {}
    for entry in _entries(device, ENUM_FMT, lambda index: FormatDescription(index, kind)):
        name = fourcc_name(entry.pixelformat)
        if name in READ:
            names_of_sizes.setdefault(_sizes(device, entry.pixelformat), []).append(name)
    texts = []
    for sizes, names in names_of_sizes.items():
        texts.append(f"{', '.join(names)} {sizes}".rstrip())
    if not texts:
        return "it offers no format that is read"
    return f"it offers {'; '.join(texts)}"


def _sizes(device: Device, code: int) -> str:
    """Return "of" and the sizes of a format; empty where the driver does not say."""
    texts: list[str] = []
    for entry in _entries(device, ENUM_FRAMESIZES, lambda index: FrameSize(index, code)):
        values = entry.values
        if entry.type != DISCRETE:
            return f"of {values[0]}x{values[3]} to {values[1]}x{values[4]}"
        texts.append(f"{values[0]}x{values[1]}")
    if len(texts) > MOST_NAMED:
        texts[MOST_NAMED:] = ["..."]
    if not texts:
        return ""
    return f"of {', '.join(texts)}"


def _rates(device: Device, given: BufferFormat) -> str:
    """Return a list of the frames per second of a format and size."""
    code = fourcc_code(given.name)
    texts = []

    def create(index: int) -> FrameInterval:
        return FrameInterval(index, code, given.width, given.height)

    for entry in _entries(device, ENUM_FRAMEINTERVALS, create):
        values = entry.values
        fastest = f"{values[1] / max(1, values[0]):.4g}"
        if entry.type != DISCRETE:
            return f"{values[3] / max(1, values[2]):.4g} to {fastest}"
        texts.append(fastest)
    return ", ".join(texts) or "no list of rates; leave out fps"


def _entries(device: Device, request: int, create: Callable[[int], Any]) -> Iterator[Any]:
    """Yield the entries of a list of the driver, which ends it with an error."""
    for index in range(MOST_ENTRIES):
        entry = create(index)
        try:
            device.call(request, entry)
        except OSError:
            return
        yield entry
