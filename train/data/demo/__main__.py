"""The command line `python -m train.demo`, which writes the data set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from flawline.train.data.demo.dataset import write_demo
from flawline.train.data.demo.products import PRODUCTS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")  # one line, without the usage


def _show(done: int, total: int) -> None:
    print(
        f"\r{done}/{total} pictures", end="\n" if done == total else "", file=sys.stderr, flush=True
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code, 2 for a mistake of the user's."""
    parser = _Parser(
        prog="train.demo", description="Write the procedural demo data set in MVTec AD layout."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--products",
        nargs="+",
        default=list(PRODUCTS),
        metavar="NAME",
        help="of " + ", ".join(PRODUCTS) + "; default all",
    )
    numbers = {"train-good": 100, "test-good": 30, "per-defect": 10, "size": 320, "seed": 0}
    for name, default in numbers.items():
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"default {default}"
        )
    given = parser.parse_args(argv)
    try:
        write_demo(
            given.out,
            given.products,
            given.train_good,
            given.test_good,
            given.per_defect,
            given.size,
            given.seed,
            _show,
        )
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
