"""python -m benchmarks.studies.backbones: image AUROC by backbone weights.

    python -m benchmarks.studies.backbones --data A B --weights random texture FILE --demo runs/demo

All detectors read images of one size. `nearest` trains nothing: the score of an image is the
largest distance of a patch from its nearest neighbour among patches of good images, as in PatchCore
(Roth et al., CVPR 2022) with a random bank. The others are methods of `train.fit`, last epoch.
Rows that the result file already holds are not measured again, so a long run can be cut short and
repeated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from flawline.benchmarks.studies.backbones import NEAREST
from flawline.benchmarks.studies.options import add_out_argument, study_parser
from flawline.benchmarks.studies.results import read_rows, write_results
from flawline.runtime.command_parser import path_argument
from flawline.runtime.console import run_command
from flawline.train import METHODS
from flawline.train.backbones import DEFAULT_BACKBONE
from flawline.train.backbones.facts import RANDOM, TEXTURE
from flawline.train.fit import DEFAULT_METHOD


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()

    def work() -> None:
        args = parser.parse_args(argv)
        if not args.data and not args.demo:
            parser.error("give --data, --demo or both")
        _run(args)

    return run_command(parser.prog, work)


def _parser() -> argparse.ArgumentParser:
    parser = study_parser("backbones", __doc__)
    parser.add_argument(
        "--data", type=path_argument, nargs="+", default=[], help="data sets, as for train.fit"
    )
    parser.add_argument(
        "--demo", type=path_argument, help="also the demo data, rendered into this folder"
    )
    parser.add_argument("--weights", nargs="+", default=[RANDOM, TEXTURE], help="as for train.fit")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=(NEAREST, *METHODS),
        default=[NEAREST, DEFAULT_METHOD],
        help=f"{NEAREST} or methods; default {NEAREST} and {DEFAULT_METHOD}",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument(
        "--steps", type=int, help="optimiser steps of the methods; default is the method's"
    )
    add_out_argument(parser, "backbones")
    return parser


def _run(args: argparse.Namespace) -> None:
    from flawline.benchmarks.studies.backbones.measure import Comparison, measure_comparison
    from flawline.benchmarks.studies.backbones.report import backbones_report
    from flawline.export.provenance import public_command

    comparison = Comparison(
        data=tuple(args.data),
        demo=args.demo,
        detectors=tuple(args.methods),
        weights=tuple(args.weights),
        seeds=tuple(args.seeds),
        backbone=args.backbone,
        steps=args.steps,
    )
    rows = measure_comparison(comparison, args.out)
    command = public_command("benchmarks.studies.backbones", _words(args))
    report = backbones_report(rows, command)
    write_results(args.out, read_rows(args.out), report)
    print(report)


def _words(args: argparse.Namespace) -> list[object]:
    """Return the arguments that select the rows."""
    words: list[object] = []
    if args.demo:
        words += ["--demo", args.demo]
    if args.data:
        words += ["--data", *args.data]
    words += ["--weights", *args.weights, "--methods", *args.methods, "--seeds", *args.seeds]
    return words


if __name__ == "__main__":
    sys.exit(main())
