"""What a stream is set up from: the flags of its command, or a station file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from flawline.cameras import Camera, open_camera
from flawline.runtime.audit.bundle_log import warn_of_outside_change
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.command_parser import path_argument
from flawline.runtime.detector import Detector
from flawline.runtime.engines import engine_options
from flawline.runtime.masters.arguments import masters_rule
from flawline.runtime.signing.arguments import trusted_keys
from flawline.runtime.station.bundle_watch import BundleOffers, WatchedBundle
from flawline.runtime.station.judge import Exchange, Judge
from flawline.runtime.station.polling import Polling
from flawline.runtime.station.region_arguments import read_region_settings

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


def add_keep_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flag that lets a running stream keep its bundle."""
    parser.add_argument(
        "--keep-bundle",
        action="store_true",
        help="judge with the bundle as it was at the start, also when another one, or another "
        "threshold, is at its path; default: a running stream takes it",
    )


class StreamSetup(Protocol):
    """Opens the parts of a stream that differ between flags and a station file."""

    def open_cameras(self) -> Iterator[Camera]:
        """Open the cameras, one after the other. Raises CameraError."""
        ...

    def read_bundle(self, path: Path) -> Bundle:
        """Read a bundle, with the trusted keys if there are any. Raises FlawlineError."""
        ...

    def open_judge(self, bundle: Bundle, check: Check) -> Judge:
        """Open what judges with a bundle. Raises FlawlineError."""
        ...

    def watch(
        self, exchange: Exchange, check: Check, watched: WatchedBundle
    ) -> AbstractContextManager[object]:
        """Offer what is to judge next to an exchange, within the block.

        `watched` is the path of the bundle that judges first, as it was before that was read.
        """
        ...


class FlagSetup:
    """A stream of the flags."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._trusted = trusted_keys(args)

    def open_cameras(self) -> Iterator[Camera]:
        for uri in self._args.camera:
            yield open_camera(uri)

    def read_bundle(self, path: Path) -> Bundle:
        return read_bundle(path, self._trusted)

    def open_judge(self, bundle: Bundle, check: Check) -> Judge:
        args = self._args
        regions = read_region_settings(args, bundle)
        options = engine_options(args)
        size = args.accept_size
        detector = Detector(bundle, args.engine, options, accept_size=size, region_settings=regions)
        judge = Judge(detector, masters=masters_rule(args), takes_bundles=not args.keep_bundle)
        return checked(judge, check)

    def watch(
        self, exchange: Exchange, check: Check, watched: WatchedBundle
    ) -> AbstractContextManager[object]:
        if self._args.keep_bundle:
            return nullcontext()

        def opening(bundle: Bundle) -> Judge:
            judge = self.open_judge(bundle, check)
            warn_of_outside_change(bundle.path)
            return judge

        offers = BundleOffers(watched, exchange, exchange.now.detector.bundle, opening)
        return Polling(offers.look, "bundle")


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
