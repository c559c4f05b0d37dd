"""python -m benchmarks.studies.accuracy: accuracy of a method over several seeds.

    python -m benchmarks.studies.accuracy --data A B --weights FILE --out results/simplenet

Trains, exports and measures each pair of data set and seed as a user would, and reports mean and
standard deviation. The last epoch counts; nothing is chosen on test images. All flags that are not
listed here go to `export.build`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flawline.benchmarks.studies.options import add_out_argument, run_with_build_flags, study_parser
from flawline.benchmarks.studies.results import write_results, write_rows
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import log


def main(argv: Sequence[str] | None = None) -> int:
    return run_with_build_flags(_parser(), argv, _run)


def _parser() -> Parser:
    parser = study_parser("accuracy", __doc__)
    parser.add_argument("--data", type=path_argument, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_out_argument(parser, "accuracy")
    return parser


def _run(args: argparse.Namespace, flags: Sequence[str]) -> None:
    from flawline.benchmarks.studies.accuracy.measure import train_and_measure
    from flawline.benchmarks.studies.accuracy.report import accuracy_report
    from flawline.export.provenance import public_command

    rows = []
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        for data in args.data:
            for seed in args.seeds:
                row = train_and_measure(data, seed, flags, Path(folder))
                rows.append(row)
                # A long run keeps what it has measured when it is cut short.
                write_rows(args.out, rows)
                log(f"{row['data']} seed {seed}: image AUROC {row['image_auroc']}")
    words = ["--data", *args.data, "--seeds", *args.seeds, *flags]
    report = accuracy_report(rows, public_command("benchmarks.studies.accuracy", words))
    write_results(args.out, rows, report)
    print(report)


if __name__ == "__main__":
    sys.exit(main())
