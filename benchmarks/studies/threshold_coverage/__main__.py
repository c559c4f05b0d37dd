"""python -m benchmarks.studies.threshold_coverage: stated against realised false-alarm rates.

    python -m benchmarks.studies.threshold_coverage --bundle B --images good-1/ good-2/ --rate 0.05
    python -m benchmarks.studies.threshold_coverage --data /data/bottle demo --method padim

The first form scores good images that the detector was not trained on. Then, many times, it sets
the threshold from some of them and counts the false alarms among the others.

The second form trains. Many times, it takes some good images at random, sets a threshold from their
out-of-fold scores and one from a hold-out of them, and counts the false alarms among the others.
Draws that OUT.json has already are not repeated, and its rows of other methods and data are kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flawline.benchmarks.studies.options import add_out_argument, study_parser
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import run_command
from flawline.train import METHODS
from flawline.train.backbones.facts import TEXTURE
from flawline.train.fit import DEFAULT_METHOD

COUNT = 100
COUNT_OF_DRAW = 60
WRITTEN_EVERY = 10  # draws, so that a long run that is stopped can be continued


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()

    def work() -> None:
        args = parser.parse_args(argv)
        _check(parser, args)
        if args.data is None:
            _resample(args)
        else:
            _simulate(args)

    return run_command(parser.prog, work)


def _parser() -> Parser:
    parser = study_parser("threshold_coverage", __doc__)
    parser.add_argument("--bundle", type=path_argument)
    parser.add_argument(
        "--images",
        nargs="+",
        help="folders of good images that the detector was not trained on",
    )
    parser.add_argument(
        "--rate", type=float, default=0.05, help="false-alarm rate; default %(default)s"
    )
    parser.add_argument(
        "--count",
        type=int,
        help=f"images that set each threshold; default {COUNT}, with --data {COUNT_OF_DRAW}",
    )
    group = parser.add_argument_group("out-of-fold scores")
    group.add_argument("--data", nargs="+", help="data sets to train on; demo for the demo data")
    group.add_argument(
        "--method", default=DEFAULT_METHOD, help=f"one of {', '.join(METHODS)}; default %(default)s"
    )
    group.add_argument("--weights", default=TEXTURE, help="as for train.fit; default %(default)s")
    group.add_argument(
        "--size", type=int, default=64, help="of the input in pixels; default %(default)s"
    )
    group.add_argument("--steps", type=int, help="optimiser steps; default is the method's")
    group.add_argument(
        "--draws", type=int, default=200, help="draws of each data set; default %(default)s"
    )
    group.add_argument(
        "--tested",
        type=int,
        default=150,
        help="other images at most that test each threshold; default %(default)s",
    )
    add_out_argument(group, "threshold-coverage")
    return parser


def _check(parser: Parser, args: argparse.Namespace) -> None:
    """End with a usage error for flags that do not fit together; fill in --count."""
    if args.data is None and (args.bundle is None or args.images is None):
        parser.error("give --bundle and --images, or --data")
    if args.data is not None and (args.bundle is not None or args.images is not None):
        parser.error("--data trains, and takes neither --bundle nor --images")
    if args.count is None:
        args.count = COUNT if args.data is None else COUNT_OF_DRAW
    if args.count < 1:
        parser.error(f"--count {args.count} sets no threshold; give at least 1 image")
    if args.draws < 1 or args.tested < 1:
        parser.error("--draws and --tested must be at least 1")


def _resample(args: argparse.Namespace) -> None:
    from flawline.benchmarks.studies.threshold_coverage.measure import (
        RESAMPLINGS,
        realised_rates,
        score_folders,
    )
    from flawline.runtime.conformal import CONFIDENCE
    from flawline.runtime.threshold import CalibrationError

    scores = score_folders(args.bundle, args.images)
    if len(scores) <= args.count:
        raise CalibrationError(
            f"{len(scores)} images leave none to test on; give more, or a smaller --count"
        )
    result = realised_rates(scores, args.rate, args.count, RESAMPLINGS)
    low, high = result.percentiles(5, 95)
    print(
        f"{len(scores)} good images: {args.count} set each of {RESAMPLINGS} thresholds, "
        "the others test it"
    )
    print(
        f"stated {args.rate:.1%}; realised {result.rates.mean():.1%} on average, "
        f"{low:.1%} to {high:.1%} in nine of ten"
    )
    print(f"inside the stated {CONFIDENCE:.0%} interval: {result.inside_interval:.1%}")


def _simulate(args: argparse.Namespace) -> None:
    from flawline.benchmarks.studies.threshold_coverage.report import add_rows, read_rows, rows_of
    from flawline.benchmarks.studies.threshold_coverage.simulate import draw_rows, facts_of
    from flawline.train.progress import Bars
    from flawline.train.recipe import plan

    recipe = plan(
        args.method,
        Path(args.data[0]),
        size=args.size,
        geometry="stretch",
        weights=args.weights,
        steps=args.steps,
        device="cpu",
    )
    page = ""
    with Bars() as bars:
        for data in args.data:
            facts = facts_of(recipe, data, args.count, args.tested)
            rows = rows_of(read_rows(args.out), facts)
            done = {row["draw"] for row in rows}
            missing = [number for number in range(args.draws) if number not in done]
            for row in draw_rows(recipe, data, missing, args.count, args.tested, bars):
                rows.append(row)
                if len(rows) % WRITTEN_EVERY == 0:
                    add_rows(args.out, rows)
            page = add_rows(args.out, rows)
    print(page)


if __name__ == "__main__":
    sys.exit(main())
