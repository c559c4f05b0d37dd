"""python -m benchmarks.studies.threshold_coverage: stated against realised false-alarm rates.

    python -m benchmarks.studies.threshold_coverage --bundle B --images good-1/ good-2/ --rate 0.05

Scores good images that the detector was not trained on. Then, many times, it sets the threshold
from some of them and counts the false alarms among the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from flawline.benchmarks.studies.options import study_parser
from flawline.runtime.command_parser import path_argument
from flawline.runtime.console import run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()

    def work() -> None:
        args = parser.parse_args(argv)
        if args.count < 1:
            parser.error(f"--count {args.count} sets no threshold; give at least 1 image")
        _run(args)

    return run_command(parser.prog, work)


def _parser() -> argparse.ArgumentParser:
    parser = study_parser("threshold_coverage", __doc__)
    parser.add_argument("--bundle", type=path_argument, required=True)
    parser.add_argument(
        "--images",
        nargs="+",
        required=True,
        help="folders of good images that the detector was not trained on",
    )
    parser.add_argument(
        "--rate", type=float, default=0.05, help="false-alarm rate; default %(default)s"
    )
    parser.add_argument(
        "--count", type=int, default=100, help="images that set each threshold; default %(default)s"
    )
    return parser


def _run(args: argparse.Namespace) -> None:
    from flawline.benchmarks.studies.threshold_coverage.measure import (
        RESAMPLINGS,
        realised_rates,
        score_folders,
    )
    from flawline.runtime.threshold import CONFIDENCE, CalibrationError

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


if __name__ == "__main__":
    sys.exit(main())
