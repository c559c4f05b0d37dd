"""python -m benchmarks.studies.doubtful: defective images among the good ones, and those listed.

    python -m benchmarks.studies.doubtful --data DATA --seeds 0 1 2 --weights imagenet

Moves defective test images into the training, in a temporary folder of links, as the study
`contamination` does, and counts how many of them `flawline train` lists as doubtful, and how many
good ones; --share 0 moves none. With --methods, it trains each method on the images of the first
seed: on all of them, without those that were moved, without the listed ones, and without those that
were both. No moved image is tested. Other flags go to `export.build`. OUT.json keeps its rows of
other data, shares, seeds and methods.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from flawline.benchmarks.studies.options import add_out_argument, run_with_build_flags, study_parser
from flawline.benchmarks.train_bundle import SET_HERE
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import log
from flawline.train.backbones.facts import IMAGENET

SHARE = 0.05


def main(argv: Sequence[str] | None = None) -> int:
    # A fifth of the images sets every threshold.
    set_here = (*SET_HERE, "--folds", "--exclude-images", "--doubtful", "--no-doubtful")
    return run_with_build_flags(_parser(), argv, _run, set_here)


def _parser() -> Parser:
    parser = study_parser("doubtful", __doc__)
    parser.add_argument("--data", type=path_argument, required=True)
    parser.add_argument(
        "--share",
        type=float,
        default=SHARE,
        help="of the training images that are defective; default %(default)s",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="of the choice of images; default 0"
    )
    parser.add_argument(
        "--methods", nargs="*", default=[], help="are trained with the first seed; default none"
    )
    parser.add_argument("--weights", default=IMAGENET, help="as for train.fit")
    add_out_argument(parser, "doubtful")
    return parser


def _run(args: argparse.Namespace, flags: Sequence[str]) -> None:
    from flawline.benchmarks.studies.contamination.data import choose_contamination
    from flawline.benchmarks.studies.doubtful.measure import measure_list, measure_trainings
    from flawline.benchmarks.studies.doubtful.report import add_row, page_of, read_row_files
    from flawline.benchmarks.studies.results import write_results, write_rows
    from flawline.export.provenance import public_command
    from flawline.train.data import open_data
    from flawline.train.fold_training import SharedFeatures

    words = ["--data", args.data, "--share", args.share, "--seeds", *args.seeds]
    if args.methods:
        words += ["--methods", *args.methods]
    words += ["--weights", args.weights, *flags]
    command = public_command("benchmarks.studies.doubtful", words)
    rows = read_row_files(args.out)
    features = SharedFeatures()
    for seed in args.seeds:
        contamination = choose_contamination(open_data(args.data), [args.share], seed)
        listed = measure_list(contamination, args.share, seed, args.weights, features)
        rows = add_row(rows, {**listed.row, "command": command})
        # A long run keeps what it has measured when it is cut short.
        write_rows(args.out, rows)
        log(f"seed {seed}: {listed.row['found']} of {listed.row['moved']} moved images are listed")
        if seed != args.seeds[0]:
            continue
        for method in args.methods:
            for row in measure_trainings(listed, method, seed, args.weights, flags):
                rows = add_row(rows, {**row, "command": command})
                write_rows(args.out, rows)
    page = page_of(rows)
    write_results(args.out, rows, page)
    print(page)


if __name__ == "__main__":
    sys.exit(main())
