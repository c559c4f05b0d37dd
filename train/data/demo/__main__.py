"""python -m train.data.demo: write the built-in demo data set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import run_command
from flawline.train.data.demo.dataset import write_demo
from flawline.train.data.demo.products import PRODUCTS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = _parser()
    return run_command(parser.prog, lambda: _write(parser.parse_args(argv)))


def _parser() -> Parser:
    parser = Parser(
        prog="train.data.demo", description="Write the procedural demo data in MVTec AD layout."
    )
    parser.add_argument(
        "--out", type=path_argument, required=True, metavar="DIR", help="folder to write to"
    )
    parser.add_argument(
        "--products",
        nargs="+",
        default=list(PRODUCTS),
        metavar="NAME",
        help=f"some of {', '.join(PRODUCTS)}; default all",
    )
    numbers = {"train-good": 100, "test-good": 30, "per-defect": 10, "size": 320, "seed": 0}
    for name, default in numbers.items():
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"default {default}"
        )
    return parser


def _write(args: argparse.Namespace) -> None:
    from flawline.train.progress import Bars

    with Bars() as bars:
        write_demo(
            args.out,
            args.products,
            train_good=args.train_good,
            test_good=args.test_good,
            per_defect=args.per_defect,
            size=args.size,
            seed=args.seed,
            progress=lambda done, total: bars("demo images", done, total),
        )


if __name__ == "__main__":
    sys.exit(main())
