"""python -m benchmarks.studies.pipeline: the stream against the engine alone and a sequential loop.

    python -m benchmarks.studies.pipeline --bundle bundles/part --engine openvino

Each measurement takes turns with what it is compared with. First, a synthetic camera of 640x480
pixels gives 100 frames per second, and then more than the engine can judge; the frames per second
of `flawline stream` are compared with those of the engine, called in a loop on one prepared image.
Then JPEG files of 1920x1080 pixels are judged by the stream, and by a loop that reads, prepares,
judges and writes one after the other. Both write JSON lines to a file. Use two cores.
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
from flawline.runtime.engines import add_engine_arguments, engine_options
from flawline.runtime.environment import versions


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    return run_command(parser.prog, lambda: _run(_arguments(parser, argv)))


def _parser() -> argparse.ArgumentParser:
    parser = study_parser("pipeline", __doc__)
    parser.add_argument(
        "--bundle", type=path_argument, action="append", required=True, help="repeat for several"
    )
    add_engine_arguments(parser)
    parser.add_argument("--frames", type=int, default=100, help="of a turn; default %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="turns; default %(default)s")
    add_out_argument(parser, "pipeline")
    return parser


def _arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    args = parser.parse_args(argv)
    if args.frames < 2 or args.rounds < 1:
        parser.error("--frames takes 2 or more, and --rounds 1 or more")
    return args


def _run(args: argparse.Namespace) -> None:
    from flawline.benchmarks.studies.pipeline.measure import measure_pipeline
    from flawline.benchmarks.studies.pipeline.report import pipeline_report

    options = engine_options(args)
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        result = measure_pipeline(
            args.bundle, args.engine, options, args.frames, args.rounds, Path(folder)
        )
    page = pipeline_report(result)
    write_results(args.out, {**result, "versions": versions()}, page)
    print(page)


if __name__ == "__main__":
    sys.exit(main())
