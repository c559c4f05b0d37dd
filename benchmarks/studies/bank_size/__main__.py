"""python -m benchmarks.studies.bank_size: how many rows a PatchCore bank needs, coreset or random.

    python -m benchmarks.studies.bank_size --data DATA --weights FILE --out results/bank-size

Trains one greedy coreset of the largest size; its first n rows are the coreset of n. Each of them
is compared with n random patches. Every bank is exported, and every test image goes through ONNX
Runtime once: that call gives both the score and the time. Draws two figures next to the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from flawline.benchmarks.studies.options import add_out_argument, study_parser
from flawline.runtime.command_parser import path_argument
from flawline.runtime.console import run_command
from flawline.train.fit import add_training_arguments

SIZES = (100, 256, 512, 1024, 2048, 4096, 8192, 16384)


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()

    def work() -> None:
        args = parser.parse_args(argv)
        if min(args.sizes) < 2:
            parser.error("--sizes counts rows: at least 2")
        _run(args)

    return run_command(parser.prog, work)


def _parser() -> argparse.ArgumentParser:
    parser = study_parser("bank_size", __doc__)
    parser.add_argument("--data", type=path_argument, required=True)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=list(SIZES), help="rows; default %(default)s"
    )
    add_out_argument(parser, "bank-size")
    add_training_arguments(parser)
    return parser


def _run(args: argparse.Namespace) -> None:
    from flawline.benchmarks.studies.bank_size.study import study_bank_size
    from flawline.train.fit import recipe_from_arguments

    # The study trains the coreset of the largest size.
    args.coreset = float(max(args.sizes))
    recipe = recipe_from_arguments(args, "patchcore", args.data)
    print(study_bank_size(recipe, args.sizes, args.out))


if __name__ == "__main__":
    sys.exit(main())
