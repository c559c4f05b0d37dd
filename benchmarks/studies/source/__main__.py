"""python -m benchmarks.studies.source: a camera's frame as the input of the graph, and prepare().

    python -m benchmarks.studies.source --bundle bundles/part --data DATA

For each bundle, the nodes that prepare images are put in front of its FP32 graph, as `flawline
build --source` does. First, the test images are frames of their own sizes, with a graph for each
size, and the scores of both ways are compared. Then a frame of --frame is judged in turns, by
prepare() and the bundle, and by the graph that takes the frame, in each CPU engine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flawline.benchmarks.studies.options import add_out_argument, study_parser
from flawline.benchmarks.studies.results import write_results
from flawline.runtime.command_parser import path_argument
from flawline.runtime.console import run_command
from flawline.runtime.environment import versions
from flawline.runtime.source_frame import SourceFrame, parse_source


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    return run_command(parser.prog, lambda: _run(_arguments(parser, argv)))


def _parser() -> argparse.ArgumentParser:
    parser = study_parser("source", __doc__)
    parser.add_argument(
        "--bundle", type=path_argument, action="append", required=True, help="repeat for several"
    )
    parser.add_argument(
        "--data",
        type=path_argument,
        action="append",
        required=True,
        help="the data set of each bundle, in the same order",
    )
    parser.add_argument(
        "--frame", default="1920x1080", help="WIDTHxHEIGHT[:LAYOUT] of the timed frame"
    )
    parser.add_argument("--images", type=int, help="at most so many test images; default all")
    parser.add_argument("--threads", type=int, default=1, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=10, help="turns; default %(default)s")
    add_out_argument(parser, "source")
    return parser


def _arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    args = parser.parse_args(argv)
    if len(args.bundle) != len(args.data):
        parser.error("give one --data for each --bundle, in the same order")
    if min(args.rounds, args.threads) < 1 or (args.images is not None and args.images < 1):
        parser.error("--rounds, --threads and --images take 1 or more")
    try:
        args.frame = parse_source(args.frame)
    except ValueError as error:
        parser.error(f"argument --frame: {error}")
    return args


def _run(args: argparse.Namespace) -> None:
    from flawline.benchmarks.studies.source.measure import measure_source
    from flawline.benchmarks.studies.source.report import source_report

    frame: SourceFrame = args.frame
    pairs = list(zip(args.bundle, args.data, strict=True))
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        result = measure_source(pairs, frame, args.images, args.threads, args.rounds, Path(folder))
    page = source_report(result)
    write_results(args.out, {**result, "versions": versions()}, page)
    print(page)


if __name__ == "__main__":
    sys.exit(main())
