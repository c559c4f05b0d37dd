"""Judge every frame of a camera: one JSON line per frame on stdout, and a summary at the end.

python runtime/infer_stream.py --bundle bundles/simplenet-bottle --camera usb://0
python -m runtime.infer_stream --bundle B --camera /data/images --save judged/ --max-frames 100
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

try:
    import flawline  # noqa: F401
except ModuleNotFoundError:
    # As a script in a checkout that was never installed. See also flawline/runtime/__init__.py.
    print("flawline is not installed in this Python; run: pip install -e .", file=sys.stderr)
    raise SystemExit(2) from None

from flawline.cameras import Camera, open_camera
from flawline.runtime.available import list_available
from flawline.runtime.bundle import read_bundle
from flawline.runtime.console import Parser, log, run_command
from flawline.runtime.detector import Detector
from flawline.runtime.engines import add_engine_arguments, engine_options
from flawline.runtime.environment import opencv_conflict, quiet_opencv
from flawline.runtime.outputs import OUTPUTS, open_output
from flawline.runtime.station.pipeline import run_stream
from flawline.runtime.station.tally import Tally

DEFAULT_OUTPUT = "jsonl"


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if not args.list and (args.bundle is None or args.camera is None):
        parser.error("--bundle and --camera are needed (or --list)")
    if args.max_frames is not None and args.max_frames < 1:
        parser.error("--max-frames must be at least 1")
    return run_command(
        parser.prog, lambda: _run(args), interrupted="interrupted before the first frame"
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="flawline-stream", description="Judge every frame of a camera.")
    parser.add_argument("--bundle", type=Path, help="the folder that export.build wrote")
    parser.add_argument(
        "--camera", help="a folder, an image, a video, usb://0, synthetic://?fps=25&frames=100"
    )
    add_engine_arguments(parser)
    parser.add_argument(
        "--output",
        action="append",
        metavar="NAME:TARGET",
        help=f"{', '.join(OUTPUTS)}; such as jsonl:lines.jsonl; repeat for several; "
        "default jsonl, which prints to stdout",
    )
    parser.add_argument("--save", type=Path, metavar="DIR", help="short for --output overlays:DIR")
    parser.add_argument("--max-frames", type=int, help="stop after so many frames")
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
        log(f"warning: {conflict}")
    if args.list:
        print(list_available())
    else:
        _stream(args)


def _stream(args: argparse.Namespace) -> None:
    bundle = read_bundle(args.bundle)
    with ExitStack() as stack:
        outputs = []
        for description in _outputs(args):
            outputs.append(stack.enter_context(open_output(description, bundle)))
        detector = stack.enter_context(Detector(bundle, args.engine, engine_options(args)))
        log(
            f"engine {detector.engine.description}, self-test passed, "
            f"threshold {detector.threshold:.6g}"
        )
        camera = open_camera(args.camera)
        stop = threading.Event()
        # The camera is closed before the signals get their former meaning back.
        stack.enter_context(_signals_stop(camera, stop))
        stack.enter_context(camera)
        run_stream(camera, detector, outputs, args.max_frames, stop, Tally())


def _outputs(args: argparse.Namespace) -> list[str]:
    """Return the descriptions of the outputs that the flags ask for."""
    descriptions = list(args.output or [DEFAULT_OUTPUT])
    if args.save is not None:
        descriptions.append(f"overlays:{args.save}")
    return descriptions


@contextmanager
def _signals_stop(camera: Camera, stop: threading.Event) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the stream with its summary, within the block."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        stop.set()
        camera.stop()

    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
