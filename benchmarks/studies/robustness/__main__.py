"""python -m benchmarks.studies.robustness: false alarms and accuracy under changed light and lens.

    python -m benchmarks.studies.robustness --bundle B --data DATA --out results/robustness

Every test image is judged as it is and after each change of `benchmarks.perturbations`, always with
the bundle's threshold. Prints a table for each bundle, and writes all rows and a figure. OUT.json
keeps its rows of other bundles, data and engines.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from flawline.benchmarks.perturbations import PERTURBATIONS
from flawline.benchmarks.studies.options import add_out_argument, study_parser
from flawline.benchmarks.studies.results import read_rows, write_results, write_rows
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import log, run_command
from flawline.runtime.engines import add_engine_arguments, engine_options


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    return run_command(parser.prog, lambda: _run(parser.parse_args(argv)))


def _parser() -> Parser:
    parser = study_parser("robustness", __doc__)
    parser.add_argument(
        "--bundle", type=path_argument, nargs="+", required=True, help="the bundles to measure"
    )
    parser.add_argument("--data", type=path_argument, required=True, help="the test images")
    parser.add_argument(
        "--changes",
        nargs="+",
        choices=tuple(PERTURBATIONS),
        default=list(PERTURBATIONS),
        help="default all",
    )
    add_engine_arguments(parser)
    add_out_argument(parser, "robustness")
    return parser


def _run(args: argparse.Namespace) -> None:
    from flawline.benchmarks.robustness import robustness_of
    from flawline.benchmarks.studies.robustness.figure import draw_robustness
    from flawline.benchmarks.studies.robustness.report import (
        ROW,
        replace_rows,
        robustness_page,
    )
    from flawline.cameras.bit_depth import bit_depth_remedy
    from flawline.export.provenance import public_command
    from flawline.runtime.bundle import read_bundle
    from flawline.train.data import open_data
    from flawline.train.data.images import TRAIN_WITH_BITS

    options = engine_options(args)
    data_set = open_data(args.data)
    bundles = [read_bundle(path) for path in args.bundle]
    words = ["--bundle", *args.bundle, "--data", args.data, "--engine", args.engine]
    command = {"command": public_command("benchmarks.studies.robustness", words)}
    rows = read_rows(args.out, ROW)
    for bundle in bundles:
        with bit_depth_remedy(TRAIN_WITH_BITS):
            new = robustness_of(bundle, data_set, args.engine, options, args.changes, facts=command)
        rows = replace_rows(rows, new)
        # A long run keeps what it has measured when it is cut short.
        write_rows(args.out, rows)
        log(f"{bundle.path}: {len(new)} rows")
    page = robustness_page(rows)
    write_results(args.out, rows, page)
    for path in draw_robustness(rows, args.out):
        log(f"wrote {path}")
    print(page)


if __name__ == "__main__":
    sys.exit(main())
