"""python -m benchmarks.studies.training_curve: AUROC of SimpleNet along its training.

    python -m benchmarks.studies.training_curve --data A B --rotating --weights FILE

Trains the light setting, and the one that it replaced, with several seeds on the same features. The
latter has constant learning rates and an average of weights whose decay is fixed. Image AUROC is
measured along the training, with the weights of the step and with their running average; nothing is
chosen by it. --rotating adds bearings that lie anywhere, in any orientation. Features are kept in
--cache.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flawline.benchmarks.studies.options import add_out_argument, study_parser
from flawline.benchmarks.studies.results import write_results, write_rows
from flawline.runtime.command_parser import path_argument
from flawline.runtime.console import log, run_command
from flawline.train.backbones import DEFAULT_BACKBONE

ROTATING = "rotating_bearing"
# Set 0 was used to choose the light setting.
REPORTED_SET = 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    return run_command(parser.prog, lambda: _run(parser, parser.parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = study_parser("training_curve", __doc__)
    parser.add_argument("--data", type=path_argument, nargs="+", default=[])
    parser.add_argument("--rotating", action="store_true", help="add the rotating bearings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weights", default="imagenet", help="of the backbone, as for train.fit")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument(
        "--cache",
        type=path_argument,
        default=Path("training_curve"),
        help="folder of the features; default %(default)s",
    )
    add_out_argument(parser, "training-curve")
    return parser


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    from flawline.benchmarks.studies.training_curve.figure import draw_curves
    from flawline.benchmarks.studies.training_curve.measure import (
        collect,
        measure_curve,
        nearest_auroc,
    )
    from flawline.benchmarks.studies.training_curve.report import curve_report
    from flawline.benchmarks.studies.training_curve.rotating import write_rotating_bearings
    from flawline.benchmarks.studies.training_curve.settings import compared_settings
    from flawline.export.provenance import public_command
    from flawline.train.progress import Bars

    folders = list(args.data)
    if args.rotating:
        folders.append(write_rotating_bearings(args.cache / ROTATING, REPORTED_SET))
    if not folders:
        parser.error("give --data or --rotating")
    compared = compared_settings(args.backbone)
    rows: list[dict[str, Any]] = []
    nearest: dict[str, float] = {}
    for folder in folders:
        with Bars() as bars:
            settings = next(iter(compared.values())).settings
            features = collect(folder, settings, args.weights, args.cache, bars)
        nearest[features.name] = nearest_auroc(features)
        for setting, chosen in compared.items():
            for seed in args.seeds:
                row = measure_curve(
                    features, chosen.settings, chosen.steps, seed, chosen.fixed_decay
                )
                rows.append({**row, "setting": setting, "weights": features.weights})
                # A long run keeps what it has measured when it is cut short.
                write_rows(args.out, {"rows": rows, "nearest": nearest})
                log(f"{features.name}, {setting}, seed {seed}: {row['points'][-1]}")
    words = ["--data", *args.data, "--seeds", *args.seeds, "--weights", args.weights]
    if args.rotating:
        words.append("--rotating")
    report = curve_report(rows, nearest, public_command("benchmarks.studies.training_curve", words))
    write_results(args.out, {"rows": rows, "nearest": nearest}, report)
    draw_curves(rows, nearest, args.out)
    print(report)


if __name__ == "__main__":
    sys.exit(main())
