"""The settings of machine-vision cameras: options of the URI, written to GenICam features.

The names of the features are those of the Standard Features Naming Convention; older cameras have
other names for a few of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from flawline.cameras import CameraError
from flawline.cameras.genicam_pixels import (
    PATTERNS,
    SUPPORTED,
    PixelFormat,
    parse_pixel_format,
)
from flawline.cameras.trigger_options import TriggerOptions
from flawline.options import option

# How the libraries end their messages.
PLACE = re.compile(r"\s*: \w+ thrown .*", re.DOTALL)
SOURCES = {"software": "Software", "line1": "Line1"}
EXPOSURE = ("ExposureTime", "ExposureTimeAbs")
FRAME_RATE = ("AcquisitionFrameRate", "AcquisitionFrameRateAbs")
RATE_SWITCH = ("AcquisitionFrameRateEnable",)


@dataclass(frozen=True)
class GenicamOptions(TriggerOptions):
    """Options of machine-vision cameras. None leaves the setting of the camera as it is."""

    pixel_format: str | None = option(None, f"a name of GenICam: {SUPPORTED}")
    width: int | None = option(None, "pixels per row, at least 1")
    height: int | None = option(None, "rows, at least 1")
    offset_x: int | None = option(None, "first column, at least 0")
    offset_y: int | None = option(None, "first row, at least 0")
    exposure_us: float | None = option(None, "exposure time in microseconds, above 0")
    gain: float | None = option(None, "gain in the unit of the camera, usually dB")
    fps: float | None = option(None, "frames per second of a running camera, above 0")
    packet_size: int | None = option(None, "bytes per network packet of GigE Vision")
    mosaic: str | None = option(
        None,
        f"give the Bayer mosaic of this pattern as it is: {', '.join(PATTERNS.values())}; for a "
        "bundle that was built for it",
    )
    features: str = option(
        "",
        "further features, NAME=VALUE;NAME=VALUE, written in this order before the other options; "
        "a name alone is a command",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        smallest = {"width": 1, "height": 1, "offset_x": 0, "offset_y": 0, "packet_size": 1}
        for name, limit in smallest.items():
            value = getattr(self, name)
            if value is not None and value < limit:
                raise ValueError(f"{name} must be at least {limit}")
        for name in ("exposure_us", "fps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be above 0")
        if self.pixel_format is not None and parse_pixel_format(self.pixel_format) is None:
            raise ValueError(f"pixel_format={self.pixel_format} is not read")
        if self.mosaic is not None and self.mosaic not in PATTERNS.values():
            raise ValueError(f"mosaic must be one of {', '.join(PATTERNS.values())}")


class Features(Protocol):
    """The features of an open camera. Errors of the library are passed on."""

    def has(self, name: str) -> bool:
        """Tell whether the camera has a feature that can be written now."""
        ...

    def read(self, name: str) -> str:
        """Return the value of a feature as text."""
        ...

    def write(self, name: str, value: str) -> None:
        """Write the value of a feature, given as text."""
        ...

    def execute(self, name: str) -> None:
        """Execute a command. Raises AttributeError for a feature that is none."""
        ...


class Settings:
    """Writes the options of a URI to a camera, `source`, and raises CameraError in one line."""

    def __init__(self, features: Features, options: GenicamOptions, source: str) -> None:
        self._features = features
        self._options = options
        self._source = source

    def apply(self) -> PixelFormat:
        """Write all options; return the pixel format that the camera then has.

        Raises CameraError for a feature that the camera does not have, for a value that it does not
        accept, and for a pixel format that is not read.
        """
        self._apply_features()
        self._apply_region()
        self._apply_exposure()
        self._apply_rate()
        self._apply_trigger()
        if self._options.packet_size is not None:
            self._write("packet_size", ("GevSCPSPacketSize",), self._options.packet_size)
        return self._pixel_format()

    def _apply_features(self) -> None:
        for entry in self._options.features.split(";"):
            name, separator, value = entry.partition("=")
            if separator:
                self._write("features", (name.strip(),), value)
            elif name.strip():
                self._execute(name.strip())

    def _apply_region(self) -> None:
        options = self._options
        if options.pixel_format is not None:
            self._write("pixel_format", ("PixelFormat",), options.pixel_format)
        # The offset limits the size, so that it comes after it.
        if options.width is not None or options.offset_x is not None:
            self._write_if_there("OffsetX", 0)
        if options.height is not None or options.offset_y is not None:
            self._write_if_there("OffsetY", 0)
        region = (
            ("width", "Width", options.width),
            ("height", "Height", options.height),
            ("offset_x", "OffsetX", options.offset_x),
            ("offset_y", "OffsetY", options.offset_y),
        )
        for option_name, feature, value in region:
            if value is not None:
                self._write(option_name, (feature,), value)

    def _apply_exposure(self) -> None:
        if self._options.exposure_us is not None:
            # An automatic exposure would overwrite the time.
            self._write_if_there("ExposureAuto", "Off")
            self._write("exposure_us", EXPOSURE, self._options.exposure_us)
        if self._options.gain is not None:
            self._write_if_there("GainAuto", "Off")
            self._write("gain", ("Gain",), self._options.gain)

    def _apply_rate(self) -> None:
        if self._options.fps is not None:
            for name in RATE_SWITCH:
                self._write_if_there(name, "true")
            self._write("fps", FRAME_RATE, self._options.fps)

    def _apply_trigger(self) -> None:
        self._write_if_there("AcquisitionMode", "Continuous")
        if self._options.trigger == "off":
            # The camera may have been left with a trigger by another program.
            self._write_if_there("TriggerMode", "Off")
            return
        self._write_if_there("TriggerSelector", "FrameStart")
        self._write("trigger", ("TriggerSource",), SOURCES[self._options.trigger])
        self._write("trigger", ("TriggerMode",), "On")

    def _pixel_format(self) -> PixelFormat:
        name = self._features.read("PixelFormat")
        pixel_format = parse_pixel_format(name)
        if pixel_format is None:
            raise CameraError(
                f"camera {self._source}: gives {name}, which is not read; choose another with "
                f"pixel_format=NAME; read are {SUPPORTED}"
            )
        wanted = self._options.mosaic
        if wanted is None:
            return pixel_format
        # Another pattern would exchange the colours, and an odd offset changes it.
        pattern = PATTERNS.get(pixel_format.bayer or "", "no mosaic")
        if pattern != wanted:
            raise CameraError(
                f"camera {self._source}: mosaic={wanted}: gives {name}, which is {pattern}; choose "
                f"another pixel_format, offset or mosaic, or leave it out"
            )
        return replace(pixel_format, bayer=None)

    def _write_if_there(self, feature: str, value: object) -> None:
        if self._features.has(feature):
            self._write(feature, (feature,), value)

    def _write(self, option_name: str, names: Sequence[str], value: object) -> None:
        """Write a value to the first of the features that the camera has."""
        for name in names:
            if not self._features.has(name):
                continue
            try:
                self._features.write(name, str(value))
            except Exception as error:
                # The libraries of the cameras have many exceptions without a common base class.
                raise self._refused(option_name, f"{name}={value}", error) from error
            return
        raise CameraError(
            f"camera {self._source}: {option_name}={value} cannot be set, as this camera has no "
            f"{' or '.join(names)} to write; leave it out"
        )

    def _execute(self, name: str) -> None:
        try:
            self._features.execute(name)
        except AttributeError:
            raise CameraError(
                f"camera {self._source}: features: {name} is not a command of this camera; give "
                f"{name}=VALUE, or leave it out"
            ) from None
        except Exception as error:
            raise self._refused("features", name, error) from error

    def _refused(self, option_name: str, written: str, error: Exception) -> CameraError:
        return CameraError(
            f"camera {self._source}: {option_name}: {written} was refused: {first_line(error)}"
        )


def first_line(error: Exception) -> str:
    """Return the message of a camera library without its place in the source of the library."""
    # GLib's errors put the name of their kind before their message.
    text = PLACE.sub("", str(getattr(error, "message", error))).strip()
    lines = text.splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(". ")
