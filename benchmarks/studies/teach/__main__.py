"""python -m benchmarks.studies.teach: detectors that were taught without torch.

    python -m benchmarks.studies.teach --data DATA --other OTHER --weights FILE --out results/teach

For each method that can be taught: a bundle that torch trained on DATA is compared with one that
was taught from the same images, which starts from a bundle of OTHER. The time to teach is that of
`flawline teach` on some of the pictures, in a process of its own. For methods to which false
rejects can be added, a detector is taught from the first pictures, judges later ones, and gets
those good parts that it rejects; one that cannot be taught is trained on the first pictures. What
OUT.json has of other methods and parts is kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flawline.benchmarks.studies.options import add_out_argument, study_parser
from flawline.benchmarks.studies.results import read_rows, write_results, write_rows
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import log, run_command
from flawline.runtime.teaching import TEACHERS
from flawline.train import METHODS

# What is measured, each with its own key of a row.
PARTS = ("compared", "time", "append")


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: _run(args))


def _parser() -> Parser:
    parser = study_parser("teach", __doc__)
    parser.add_argument("--data", type=path_argument, required=True)
    parser.add_argument(
        "--other", type=path_argument, required=True, help="what the bundle knows before"
    )
    parser.add_argument("--weights", required=True, help="pretrained weights, as in flawline train")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(TEACHERS),
        choices=list(METHODS),
        help="default: all that can be taught; of others, only the part append is measured",
    )
    parser.add_argument(
        "--parts", nargs="+", default=list(PARTS), choices=PARTS, help="default: all of them"
    )
    parser.add_argument("--images", type=int, help="good images to train on and hold out")
    parser.add_argument(
        "--timed",
        type=int,
        default=200,
        help="pictures whose time is measured; default %(default)s",
    )
    parser.add_argument(
        "--few",
        type=int,
        default=100,
        help="the first pictures, before others; default %(default)s",
    )
    parser.add_argument(
        "--rejects", type=int, default=40, help="false rejects at most; default %(default)s"
    )
    parser.add_argument(
        "--rate", type=float, default=0.1, help="false-alarm rate of these; default %(default)s"
    )
    parser.add_argument("--size", type=int, help="of the input; default is the method's")
    add_out_argument(parser, "teach")
    return parser


def _run(args: argparse.Namespace) -> None:
    from flawline.benchmarks.studies.teach.measure import Study
    from flawline.benchmarks.studies.teach.report import ROW, teach_page
    from flawline.export.provenance import public_command
    from flawline.train.data import open_data

    rows = {row["method"]: row for row in read_rows(args.out, ROW)}
    words: list[object] = ["--data", args.data, "--other", args.other, "--weights", args.weights]
    words += ["--images", args.images] if args.images else []
    words += ["--timed", args.timed, "--few", args.few, "--rejects", args.rejects]
    words += ["--rate", args.rate, "--methods", *args.methods]
    command = public_command("benchmarks.studies.teach", words)
    flags = ["--weights", str(args.weights), *(["--size", str(args.size)] if args.size else [])]
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        study = Study(open_data(args.data), args.other, flags, Path(folder))
        measure: dict[str, Callable[[str], Any]] = {
            "compared": lambda method: study.compare(method, args.images),
            "time": lambda method: study.time(method, args.timed),
            "append": lambda method: study.append(method, args.few, args.rejects, args.rate),
        }
        for method in args.methods:
            row = rows.setdefault(method, {"method": method, **dict.fromkeys(PARTS)})
            row.update(study.facts(), command=command)
            for part in args.parts:
                if method not in TEACHERS and part != "append":
                    continue
                row[part] = measure[part](method)
                log(f"{method}: {part} {row[part]}")
                # A long run keeps what it has measured when it is cut short.
                write_rows(args.out, list(rows.values()))
    page = teach_page(list(rows.values()))
    write_results(args.out, list(rows.values()), page)
    print(page)


if __name__ == "__main__":
    sys.exit(main())
