"""A stream whose cameras, recipes and outputs are those of a station file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from flawline.cameras import Camera, open_camera
from flawline.cameras.triggered import TriggeredCamera
from flawline.runtime.bundle import Bundle
from flawline.runtime.station.bundle_watch import WatchedBundle
from flawline.runtime.station.judge import Exchange, Judge
from flawline.runtime.station.part_feed import STDIN
from flawline.runtime.station.polling import Polling
from flawline.runtime.station.settings.opening import bundle_reader, open_judge
from flawline.runtime.station.settings.station_file import Station, StationError, read_station
from flawline.runtime.station.settings.watch import StationWatch
from flawline.runtime.station.setup import Check

# Flags that say nothing about the station itself.
BESIDE = ("station", "parts", "max_frames", "profile", "alive", "trusted_key", "list")


def refuse_flags(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    beside: Sequence[str] = BESIDE,
) -> None:
    """End the command with an error if a flag was given whose value the station file states.

    `parser` is the one of the command; it is of no further use. `beside` are flags that say nothing
    about the station itself.
    """
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    given = vars(parser.parse_args(argv))
    for name, value in given.items():
        # Some versions of argparse give this value to an argument without a flag that is absent.
        if name not in beside and str(value) != argparse.SUPPRESS:
            flag = f"--{name.replace('_', '-')}"
            parser.error(f"{flag} does not go with --station, whose file says it")


class StationSetup:
    """A stream of a station file."""

    def __init__(self, station: Station, keys: Sequence[Path]) -> None:
        self._station = station
        # Of the flag, in place of those of the file, which others may write.
        self._keys = keys

    def open_cameras(self) -> Iterator[Camera]:
        content = self._station.content
        for number, entry in enumerate(content.cameras):
            camera = open_camera(entry.uri)
            if camera.name is not None:
                camera.close()
                self._station.refuse(
                    f"the camera has the name {camera.name} in its URI; write it as the key name",
                    "cameras",
                    number,
                    "uri",
                )
            camera.name = entry.name
            if content.reject_after is not None:
                self._require_continuous(camera, number)
            yield camera

    def _require_continuous(self, camera: Camera, number: int) -> None:
        """Raise StationError if each frame shows a part, which would not be rejected."""
        if camera.views == 1 and not (isinstance(camera, TriggeredCamera) and camera.triggered):
            return
        camera.close()
        self._station.refuse(
            f"reject_after is for continuous streams, and a bad part of camera "
            f"{self._station.camera_names()[number]}, which has a trigger, would not be rejected; "
            f"leave it out",
            "reject_after",
        )

    def open_judge(self, bundle: Bundle, check: Check) -> Judge:
        return open_judge(self._station, check, bundle)

    def read_bundle(self, path: Path) -> Bundle:
        return bundle_reader(self._station, self._keys)(path)

    def watch(
        self, exchange: Exchange, check: Check, watched: WatchedBundle
    ) -> AbstractContextManager[object]:
        watch = StationWatch(self._station, exchange, check, watched, self._keys)
        return Polling(watch.look, "station file")


@contextmanager
def open_station(args: argparse.Namespace) -> Iterator[StationSetup]:
    """Read the file of --station, and let the block run in its folder.

    The flags get the values of the file that the stream reads there. Raises StationError.
    """
    station = read_station(args.station.absolute())
    content = station.content
    if args.parts is not None and len(content.cameras) > 1 and not content.same_part:
        raise StationError(
            f"{station.path}: --parts with several cameras needs same_part, since a line names one "
            f"part; leave --parts out"
        )
    if args.parts not in (None, STDIN):
        args.parts = str(Path(args.parts).absolute())
    keys = [path.absolute() for path in args.trusted_key or []]
    if args.alive is not None:
        args.alive = args.alive.absolute()
    args.bundle = station.bundle_of(station.recipe)
    args.camera = [camera.uri for camera in content.cameras]
    args.output = list(content.outputs)
    args.streams = content.engine.streams
    args.batch = content.batch
    args.batch_wait = content.batch_wait_ms
    args.same_part = content.same_part
    args.part_wait = content.part_wait_s
    former = Path.cwd()
    os.chdir(station.folder)
    try:
        yield StationSetup(station, keys)
    finally:
        os.chdir(former)
