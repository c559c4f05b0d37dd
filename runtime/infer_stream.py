"""Judge every frame of a camera: one JSON line per frame on stdout, and a summary at the end.

It is also `flawline stream`, `python -m runtime.infer_stream` and `python runtime/infer_stream.py`.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    if not __package__:
        # As a script, with its folder first on the import path.
        import_module("installation").require_installation()
    # The imports below take a while.
    import_module("flawline.interrupts").end_quietly()

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import FrameType

from flawline.cameras import Camera, CameraError
from flawline.cameras.usages import usages
from flawline.commands import program_of
from flawline.runtime.audit.bundle_log import warn_of_outside_change
from flawline.runtime.available import list_available
from flawline.runtime.bundle import Bundle
from flawline.runtime.bundle_files import require_bundle_folder
from flawline.runtime.command_parser import Parser, path_argument, text_argument
from flawline.runtime.console import log, log_notes, run_command, warn
from flawline.runtime.detector import Detector
from flawline.runtime.drift.watch import drift_notes
from flawline.runtime.engines import (
    add_engine_arguments,
    add_streams_argument,
)
from flawline.runtime.environment import opencv_conflict, quiet_opencv
from flawline.runtime.masters.arguments import add_masters_arguments
from flawline.runtime.signals import signal_handlers
from flawline.runtime.signing.arguments import add_trusted_argument
from flawline.runtime.stage_times import stage_table
from flawline.runtime.station.bundle_watch import WatchedBundle
from flawline.runtime.station.judge import Exchange, require_same_maps
from flawline.runtime.station.life_signs import open_life_signs
from flawline.runtime.station.masters_watch import MastersWatch
from flawline.runtime.station.output_arguments import (
    add_output_arguments,
    check_output_arguments,
    open_outputs,
)
from flawline.runtime.station.part_feed import PartFeed
from flawline.runtime.station.pipeline import run_stream
from flawline.runtime.station.region_arguments import add_region_arguments
from flawline.runtime.station.run_arguments import add_run_arguments
from flawline.runtime.station.setup import (
    Check,
    FlagSetup,
    StreamSetup,
    add_keep_argument,
    add_station_argument,
)
from flawline.runtime.station.several_arguments import (
    add_several_cameras_arguments,
    check_several_cameras,
    station_settings,
)
from flawline.runtime.station.several_cameras import Station
from flawline.runtime.station.tally import Tally
from flawline.runtime.throughput import require_batch

EXAMPLES = (
    "flawline stream --bundle bundles/part --camera usb://0",
    "flawline stream --bundle bundles/part --camera /data/images --save overlays --max-frames 100",
    "flawline stream --bundle bundles/part --camera 'usb://0?name=left' --camera 'usb://1?name=right'",
    "flawline stream --station station.json",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; return its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.station is not None:
        # Imported here, since only a station needs the library of its types.
        from flawline.runtime.station.settings.stream import refuse_flags

        refuse_flags(_parser(), argv)
    elif not args.list and (args.bundle is None or args.camera is None):
        parser.error("--bundle and --camera are needed (or --station or --list)")
    if args.max_frames is not None and args.max_frames < 1:
        parser.error("--max-frames must be at least 1")
    check_output_arguments(parser, args)
    check_several_cameras(parser, args)
    return run_command(
        parser.prog, lambda: _run(args), interrupted="interrupted before the first frame"
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program_of("stream"),
        description="Judge every frame of a camera: one JSON line per frame, and a summary.",
        examples=EXAMPLES,
    )
    parser.add_argument("--bundle", type=path_argument, help="the folder that flawline build wrote")
    add_station_argument(parser)
    add_keep_argument(parser)
    add_trusted_argument(parser)
    parser.add_argument(
        "--camera",
        action="append",
        type=text_argument,
        help=f"for example {usages()}; repeat for several".replace("%", "%%"),
    )
    add_engine_arguments(parser)
    add_streams_argument(parser)
    add_output_arguments(parser)
    add_run_arguments(parser)
    add_several_cameras_arguments(parser)
    add_region_arguments(parser)
    add_masters_arguments(parser)
    parser.add_argument(
        "--accept-size",
        action="store_true",
        help="judge images whose size is far from those of the training, instead of rejecting them",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="list the engines, cameras and outputs, and what they are missing",
    )
    return parser


def _run(args: argparse.Namespace) -> None:
    quiet_opencv()
    conflict = opencv_conflict()
    if conflict is not None:
        warn(f"warning: {conflict}")
    if args.list:
        print(list_available())
    elif args.station is not None:
        from flawline.runtime.station.settings.stream import open_station

        with open_station(args) as station:
            _stream(args, station)
    else:
        _stream(args, FlagSetup(args))


def _stream(args: argparse.Namespace, setup: StreamSetup) -> None:
    require_bundle_folder(args.bundle, args.camera[0])
    watched = WatchedBundle(args.bundle, setup.read_bundle)
    bundle = watched.read()
    with ExitStack() as stack:
        life = stack.enter_context(open_life_signs(args.alive))
        # What takes no time to check comes before the engine, which may be compiled for minutes.
        cameras = [stack.enter_context(camera) for camera in setup.open_cameras()]
        station = None
        batch = _batch_in_flight(args, cameras)
        if len(cameras) > 1:
            station = Station(cameras, station_settings(args))
        feed = None if args.parts is None else PartFeed(args.parts, *cameras)
        opened = [stack.enter_context(output) for output in open_outputs(args, bundle)]
        check = _check(bundle, station, batch or 1)
        exchange = stack.enter_context(Exchange(setup.open_judge(bundle, check)))
        _log_start(cameras, station, exchange.now.detector)
        stop = threading.Event()

        def end() -> None:
            life.stopping()
            if station is not None:
                station.stop()
            else:
                stop.set()
                cameras[0].stop()
            for output in opened:
                output.stop_waiting()

        stack.enter_context(_signals_call(end))
        for camera in cameras:
            # The camera is closed before the signals get their former meaning back.
            stack.callback(camera.close)
        stack.enter_context(setup.watch(exchange, check, watched))
        stack.enter_context(MastersWatch(exchange, end))
        if feed is not None:
            feed.start()
        tally = Tally(profile=args.profile)
        stack.callback(_log_profile, tally)
        stack.callback(life.stopping)
        if station is None:
            run_stream(cameras[0], exchange, opened, args.max_frames, stop, tally, batch, life)
        else:
            station.run(exchange, opened, args.max_frames, tally, life)


def _check(first: Bundle, station: Station | None, batch: int) -> Check:
    """Return what refuses a detector that does not fit the stream, and prepares any other."""

    def check(detector: Detector) -> None:
        require_batch(detector, batch)
        require_same_maps(detector.bundle, first)
        if station is not None:
            station.prepare(detector)

    return check


def _batch_in_flight(args: argparse.Namespace, cameras: Sequence[Camera]) -> int | None:
    """Return the size of the batches of a single source of files in throughput mode, else None.

    Raises CameraError for a camera that does not wait, or whose next file may come much later: its
    frames would be judged after later ones came.
    """
    if len(cameras) > 1 or (args.streams is None and args.batch is None):
        return None
    (camera,) = cameras
    if camera.endless:
        raise CameraError(
            f"camera {camera.source}: --streams and --batch delay verdicts, so that they are for "
            f"folders and videos only; leave them out"
        )
    return args.batch or 1


def _log_start(cameras: Sequence[Camera], station: Station | None, detector: Detector) -> None:
    """Log what is judged, and with what."""
    warn_of_outside_change(detector.bundle.path)
    if station is not None:
        log_notes(station.notes())
    for camera in cameras:
        log_notes(camera.notes())
    log(
        f"engine {detector.engine.description}, self-test passed, "
        f"threshold {detector.threshold:.6g}"
    )
    graph_input = detector.graph_input
    if graph_input.source is not None:
        log(f"the graph takes frames of {graph_input.source} as they are, and no others")
    if graph_input.tiles is not None:
        log(f"each frame is judged in {graph_input.inputs_per_frame} of {graph_input.tiles}")
    if graph_input.area is not None:
        log(f"inspected: {graph_input.area}; frames of another size are rejected")
    if graph_input.fixture is not None:
        log(f"parts are laid as in a reference picture: {graph_input.fixture}")
    log_notes(drift_notes(detector.bundle.drift))


def _log_profile(tally: Tally) -> None:
    """Log where the time went, if that was asked for."""
    if tally.profile:
        # Of the summary: closing the engine and the outputs takes time, too.
        log_notes(stage_table(tally.profiled or tally.stages.summary()))


def _signals_call(end: Callable[[], None]) -> AbstractContextManager[None]:
    """Let SIGINT, SIGTERM and SIGHUP end the stream with its summary, within the block."""

    def handle(_signal: int, _frame: FrameType | None) -> None:
        end()

    numbers = [signal.SIGINT, signal.SIGTERM]
    # The stream continues under `nohup`, which lets this signal be ignored.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return signal_handlers(dict.fromkeys(numbers, handle))


if __name__ == "__main__":
    sys.exit(main())
