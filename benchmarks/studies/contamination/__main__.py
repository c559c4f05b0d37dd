"""python -m benchmarks.studies.contamination: defective images among the good ones of the training.

    python -m benchmarks.studies.contamination --method patchcore --data DATA --shares 0 0.02 0.1

Moves defective test images into the training, in a temporary folder of links, trains, exports and
tests. The test images are the same for every share, and none of them is ever trained on. All flags
that are not listed here go to `export.build`. OUT.json keeps its rows of other methods, data and
shares, so that each share can be measured in a run of its own, with the same --largest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from flawline.benchmarks.studies.options import add_out_argument, run_with_build_flags, study_parser
from flawline.benchmarks.studies.results import read_rows, write_results, write_rows
from flawline.benchmarks.train_bundle import SET_HERE
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import log
from flawline.train.fit import DEFAULT_METHOD

SHARES = [0.0, 0.02, 0.1]


def main(argv: Sequence[str] | None = None) -> int:
    # A fifth of the images sets every threshold.
    return run_with_build_flags(_parser(), argv, _run, (*SET_HERE, "--folds"))


def _parser() -> Parser:
    parser = study_parser("contamination", __doc__)
    parser.add_argument("--data", type=path_argument, required=True)
    parser.add_argument("--method", default=DEFAULT_METHOD, help="default %(default)s")
    parser.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=SHARES,
        help="of the training images that are defective, from 0 to below 1; default 0 0.02 0.1",
    )
    parser.add_argument(
        "--largest",
        type=float,
        help="none of the images that this share takes is tested; default is the largest share",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the training and the choice of images"
    )
    add_out_argument(parser, "contamination")
    return parser


def _run(args: argparse.Namespace, flags: Sequence[str]) -> None:
    from flawline.benchmarks.studies.contamination.data import choose_contamination
    from flawline.benchmarks.studies.contamination.measure import measure_share
    from flawline.benchmarks.studies.contamination.report import ROW, add_row, contamination_page
    from flawline.export.provenance import public_command
    from flawline.train.data import open_data

    largest = max(args.shares) if args.largest is None else args.largest
    contamination = choose_contamination(open_data(args.data), [*args.shares, largest], args.seed)
    words = ["--method", args.method, "--data", args.data, "--shares", *args.shares]
    words += ["--largest", largest, "--seed", args.seed, *flags]
    command = public_command("benchmarks.studies.contamination", words)
    rows = read_rows(args.out, ROW)
    for share in args.shares:
        row = measure_share(contamination, share, args.method, args.seed, flags)
        rows = add_row(rows, {**row, "command": command})
        # A long run keeps what it has measured when it is cut short.
        write_rows(args.out, rows)
        log(f"share {share:g}: image AUROC {row['image_auroc']}")
    page = contamination_page(rows)
    write_results(args.out, rows, page)
    print(page)


if __name__ == "__main__":
    sys.exit(main())
