"""python -m benchmarks.studies.accuracy: what a method reaches over several seeds.

    python -m benchmarks.studies.accuracy --data A B --weights FILE --out results/simplenet

Trains, exports and measures each pair of data set and seed as a user would, and reports mean and
standard deviation. The last epoch counts; nothing is chosen on test images. All flags that are not
listed here go to `export.build`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flawline.benchmarks.studies.results import write_results, write_rows
from flawline.runtime.console import Parser, log, run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()

    def work() -> None:
        args, flags = parser.parse_known_args(argv)
        _run(args, flags)

    return run_command(parser.prog, work)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="benchmarks.studies.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/accuracy"),
        help="results without suffix; default %(default)s",
    )
    return parser


def _run(args: argparse.Namespace, flags: Sequence[str]) -> None:
    from flawline.benchmarks.studies.accuracy.measure import train_and_measure
    from flawline.benchmarks.studies.accuracy.report import accuracy_report

    rows = []
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        for data in args.data:
            for seed in args.seeds:
                row = train_and_measure(data, seed, flags, Path(folder))
                rows.append(row)
                # A long run keeps what it has measured when it is cut short.
                write_rows(args.out, rows)
                log(f"{data.name} seed {seed}: image AUROC {row['image_auroc']}")
    report = accuracy_report(rows, _public_command(args, flags))
    write_results(args.out, rows, report)
    print(report)


def _public_command(args: argparse.Namespace, flags: Sequence[str]) -> str:
    """The command with names in place of paths, which are private."""
    words = ["--data"]
    for data in args.data:
        words.append(data.name)
    words.append("--seeds")
    for seed in args.seeds:
        words.append(str(seed))
    for flag in flags:
        words.append(Path(flag).name)
    return f"python -m benchmarks.studies.accuracy {shlex.join(words)}"


if __name__ == "__main__":
    sys.exit(main())
