"""python -m benchmarks.studies.drift: which changes of a stream are named, and how soon.

    python -m benchmarks.studies.drift --method padim --data DATA

Trains and exports on demo products, and on each data set of --data. Good frames that were not
trained on are judged as `flawline stream` judges them, as they are and after each change, and the
warnings of the drift check are counted. Frames of a demo product are rendered; those of a data set
are its good test images, drawn at random. Then the check is given random numbers that depend on
those before them, and what it takes of the time of a frame is measured. All flags that are not
listed here go to `export.build`. OUT.json keeps its rows of other data sets.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flawline.benchmarks.studies.options import add_out_argument, run_with_build_flags, study_parser
from flawline.benchmarks.studies.results import read_rows, write_results
from flawline.benchmarks.train_bundle import SET_HERE, require_build_flags
from flawline.runtime.command_parser import Parser, path_argument
from flawline.train.data.demo import PRODUCTS


def main(argv: Sequence[str] | None = None) -> int:
    return run_with_build_flags(_parser(), argv, _run, SET_HERE)


def _parser() -> Parser:
    parser = study_parser("drift", __doc__)
    parser.add_argument(
        "--products", nargs="*", choices=PRODUCTS, default=list(PRODUCTS), help="default: all"
    )
    parser.add_argument("--data", nargs="*", type=path_argument, default=[])
    parser.add_argument(
        "--folder",
        type=path_argument,
        default=Path("drift"),
        help="of the demo data and the bundles; default %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--frames", type=int, default=5000, help="good frames of a stream; default %(default)s"
    )
    parser.add_argument(
        "--different",
        type=int,
        default=5000,
        help="different good frames of a demo product, from which those of a stream are drawn; "
        "default %(default)s",
    )
    parser.add_argument(
        "--streams", type=int, default=20, help="streams of each change; default %(default)s"
    )
    parser.add_argument(
        "--simulated",
        type=int,
        default=20,
        help="simulated streams of each process; 0 leaves them and the times out; "
        "default %(default)s",
    )
    add_out_argument(parser, "drift")
    return parser


def _run(args: argparse.Namespace, flags: Sequence[str]) -> None:
    from flawline.benchmarks.studies.drift.measure import measure_changes, measure_time
    from flawline.benchmarks.studies.drift.report import ROW, add_rows, drift_page
    from flawline.benchmarks.studies.drift.simulate import simulate
    from flawline.benchmarks.studies.drift.subjects import open_subjects
    from flawline.export.provenance import public_command

    require_build_flags(flags)
    words = ["--products", *args.products, "--data", *args.data, "--seed", args.seed]
    words += [
        "--frames",
        args.frames,
        "--different",
        args.different,
        "--streams",
        args.streams,
        "--simulated",
        args.simulated,
    ]
    command = public_command("benchmarks.studies.drift", [*words, *flags])
    rows = read_rows(args.out, ROW)
    subjects = open_subjects(args.products, args.data, args.folder, args.different)

    def keep(measured: Sequence[Mapping[str, Any]]) -> None:
        # A long run keeps what it has measured when it is cut short.
        rows[:] = add_rows(rows, [{**row, "command": command} for row in measured])
        write_results(args.out, rows, drift_page(rows))

    if args.simulated:
        keep([measure_time()])
        keep(simulate(args.simulated))
    for subject in subjects:
        numbers = (args.seed, args.frames, args.streams)
        keep(measure_changes(subject, subjects, flags, args.folder, *numbers))
    print(drift_page(rows))


if __name__ == "__main__":
    sys.exit(main())
