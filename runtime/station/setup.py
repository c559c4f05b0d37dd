"""What a stream is set up from: the flags of its command, or a station file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from flawline.cameras import Camera, open_camera
from flawline.runtime.bundle import Bundle
from flawline.runtime.command_parser import path_argument
from flawline.runtime.detector import Detector
from flawline.runtime.engines import engine_options
from flawline.runtime.masters.arguments import masters_rule
from flawline.runtime.regions import RegionSettings
from flawline.runtime.station.judge import Exchange, Judge

# Raises FlawlineError for a detector that does not fit the stream.
Check = Callable[[Detector], None]


def add_station_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flag that takes a station file in place of other flags."""
    parser.add_argument(
        "--station",
        type=path_argument,
        metavar="FILE",
        help="take bundle, cameras, thresholds and outputs from this file, whose recipe may be "
        "changed while the stream runs; in place of the flags for them",
    )


class StreamSetup(Protocol):
    """Opens the parts of a stream that differ between flags and a station file."""

    def open_cameras(self) -> Iterator[Camera]:
        """Open the cameras, one after the other. Raises CameraError."""
        ...

    def open_judge(self, bundle: Bundle, regions: RegionSettings, check: Check) -> Judge:
        """Open what judges first. Raises FlawlineError.

        `regions` are those that the flags ask for.
        """
        ...

    def watch(self, exchange: Exchange, check: Check) -> AbstractContextManager[object]:
        """Offer what is to judge next to an exchange, within the block."""
        ...


class FlagSetup:
    """A stream of the flags, whose judge stays the same."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args

    def open_cameras(self) -> Iterator[Camera]:
        for uri in self._args.camera:
            yield open_camera(uri)

    def open_judge(self, bundle: Bundle, regions: RegionSettings, check: Check) -> Judge:
        args = self._args
        options = engine_options(args)
        size = args.accept_size
        detector = Detector(bundle, args.engine, options, accept_size=size, region_settings=regions)
        return checked(Judge(detector, masters=masters_rule(args)), check)

    def watch(self, exchange: Exchange, check: Check) -> AbstractContextManager[object]:
        return nullcontext()


def checked(judge: Judge, check: Check) -> Judge:
    """Return a judge whose detector fits the stream; close the detector of another one.

    Its master parts are checked, too, if that is demanded.
    """
    try:
        check(judge.detector)
        if judge.masters is not None:
            judge.masters.require(judge.detector)
    except BaseException:
        judge.detector.close()
        raise
    return judge
