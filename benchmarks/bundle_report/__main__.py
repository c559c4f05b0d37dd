"""python -m benchmarks.bundle_report: one HTML page that helps to decide whether to trust a bundle.

    python -m benchmarks.bundle_report --bundle bundles/part --data DATA

Every number comes from the verdicts of `Detector`, on this machine, on DATA's test images and on
its held-out good images. The page is one file without scripts that loads nothing else, so it can be
mailed, archived with the bundle and printed.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # The imports below take a while.
    import_module("flawline.interrupts").end_quietly()

import argparse
import sys
from collections.abc import Sequence

from flawline.commands import program_of
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import log, run_command
from flawline.runtime.engines import add_engine_arguments, engine_options

EXAMPLES = (
    "flawline report --bundle bundles/part --data /data/part",
    "flawline report --bundle bundles/part --data /data/part --engine openvino --out part.html",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    return run_command(parser.prog, lambda: _run(parser.parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program_of("report"),
        description="One HTML page about a bundle's verdicts.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--bundle", type=path_argument, required=True, help="the bundle to judge with"
    )
    parser.add_argument(
        "--data", type=path_argument, required=True, help="as for training, with test images"
    )
    parser.add_argument(
        "--out", type=path_argument, help="the page to write; default BUNDLE/report.html"
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=range(8, 17),
        metavar="N",
        help="significant bits of 16-bit images; default as in training",
    )
    add_engine_arguments(parser)
    return parser


def _run(args: argparse.Namespace) -> int:
    from flawline.benchmarks.bundle_report.page import write_bundle_report

    out = args.out or args.bundle / "report.html"
    write_bundle_report(args.bundle, args.data, out, args.engine, engine_options(args), args.bits)
    log(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
