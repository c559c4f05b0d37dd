"""python -m benchmarks.studies.backbones: what a backbone's weights are worth to a detector.

    python -m benchmarks.studies.backbones --data A B --weights random texture FILE --demo runs/demo

Two detectors read the same features. `nearest` trains nothing: the score of an image is the largest
distance of a patch from its nearest neighbour among patches of good images, as in PatchCore (Roth
et al., CVPR 2022) with a random bank. `simplenet` is `train.fit` with its defaults, last epoch.
Rows that the result file already holds are not measured again, so a long run can be cut short and
repeated.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from flawline.benchmarks.studies.results import write_results
from flawline.runtime.console import Parser, run_command

DETECTORS = ("nearest", "simplenet")


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()

    def work() -> None:
        args = parser.parse_args(argv)
        if not args.data and not args.demo:
            parser.error("give --data, --demo or both")
        _run(args)

    return run_command(parser.prog, work)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="benchmarks.studies.backbones",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[], help="data sets, as for train.fit"
    )
    parser.add_argument("--demo", type=Path, help="also the demo data, rendered into this folder")
    parser.add_argument(
        "--weights", nargs="+", default=["random", "texture"], help="as for train.fit"
    )
    parser.add_argument("--methods", nargs="+", choices=DETECTORS, default=list(DETECTORS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument(
        "--steps", type=int, help="optimiser steps of SimpleNet; default is the method's"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/backbones"),
        help="results without suffix; default %(default)s",
    )
    return parser


def _run(args: argparse.Namespace) -> None:
    from flawline.benchmarks.studies.backbones.measure import (
        Comparison,
        measure_comparison,
        read_rows,
    )
    from flawline.benchmarks.studies.backbones.report import backbones_report

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
    report = backbones_report(rows, _public_command(args))
    write_results(args.out, read_rows(args.out), report)
    print(report)


def _public_command(args: argparse.Namespace) -> str:
    """The command with names in place of paths, which are private."""
    words = []
    if args.demo:
        words += ["--demo", args.demo.name]
    if args.data:
        words.append("--data")
        for data in args.data:
            words.append(data.name)
    words.append("--weights")
    for weights in args.weights:
        words.append(Path(weights).name)
    words += ["--methods", *args.methods, "--seeds"]
    for seed in args.seeds:
        words.append(str(seed))
    return f"python -m benchmarks.studies.backbones {shlex.join(words)}"


if __name__ == "__main__":
    sys.exit(main())
