"""flawline choose: which method, backbone and precision fit a time per frame, without test images.

Also `python -m export.choose`.

1. A graph of every candidate is exported after a training of one step, and timed on this machine.
   What is over the budget is not trained.
2. The others are trained with a fifth of the good images held out, exported and timed again.
3. They are ranked by how well they tell the held-out images from synthetic anomalies that are made
   of them; the formula is in `export/choosing/rank.py`. No test image is read.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # The imports below take a while.
    import_module("flawline.interrupts").end_quietly()

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flawline.cameras.bit_depth import bit_depth_remedy
from flawline.commands import command_line, program_of
from flawline.export import ExportError
from flawline.export.local_engine import add_build_arguments, read_build_options
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import log, run_command, warn
from flawline.runtime.engines import ENGINES
from flawline.runtime.precisions import PRECISIONS
from flawline.train import METHODS
from flawline.train.backbones import BACKBONES
from flawline.train.data.exclusion import FLAG as EXCLUSION_FLAG
from flawline.train.data_arguments import add_exclusion_argument, excluded_of

if TYPE_CHECKING:
    from flawline.export.choosing.candidates import Candidate
    from flawline.export.choosing.compare import Comparison
    from flawline.export.choosing.table import Row

PROGRAM = program_of("choose")
DEFAULT_OUT = Path("choose")
EXAMPLES = (
    "flawline choose --data /data/bottle --budget-ms 10",
    "flawline choose --data /data/bottle --budget-ms 10 --engine openvino --precision fp32 bf16",
    "flawline choose --data /data/bottle --budget-ms 10 --methods simplenet padim --minutes 60",
)
RESULT = "choice"
INTERRUPTED = "interrupted; the same command continues"


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Find the methods, backbones and precisions that fit a time per frame on this "
        "machine, and rank them with held-out good images and synthetic anomalies. No test image "
        "is read.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--data",
        type=path_argument,
        required=True,
        help="MVTec-like folder, or a folder of good images",
    )
    parser.add_argument(
        "--budget-ms",
        type=float,
        required=True,
        help="longest median time per frame, for resizing it and running the graph",
    )
    parser.add_argument(
        "--methods", nargs="+", help=f"all or some of {', '.join(METHODS)}; default all"
    )
    parser.add_argument(
        "--backbones",
        nargs="+",
        help=f"all or some of {', '.join(BACKBONES)}; default is that of each method",
    )
    _add_training_arguments(parser)
    _add_engine_arguments(parser)
    parser.add_argument(
        "--out",
        type=path_argument,
        default=DEFAULT_OUT,
        help="folder of the measurements and bundles; default %(default)s",
    )
    add_build_arguments(parser)
    return parser


def _add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engines")
    group.add_argument(
        "--engine",
        default="auto",
        help=f"{', '.join(ENGINES)}, or auto for all that this machine can use; default auto",
    )
    group.add_argument(
        "--precision",
        nargs="+",
        choices=tuple(PRECISIONS),
        help="default is every precision that the engine runs",
    )
    group.add_argument(
        "--threads",
        type=int,
        help="threads of a CPU engine; default: the cores that this process may use",
    )


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    add_exclusion_argument(group)
    group.add_argument("--weights", help="as for flawline train, for every method with a backbone")
    group.add_argument("--seed", type=int, default=0, help="of all random choices; default 0")
    group.add_argument(
        "--bits", type=int, help="significant bits of 16-bit images, such as 12 for a 12-bit camera"
    )
    group.add_argument(
        "--minutes",
        type=float,
        help="stop training after so many minutes in all and rank what is trained; the same "
        "command continues",
    )


def _run(words: Sequence[str]) -> None:
    args = _parser().parse_args(words)
    build_options = read_build_options(args)
    # These need torch, which --help does without.
    from flawline.export.choosing.candidates import Request, backbone_names, method_names
    from flawline.export.choosing.compare import compare
    from flawline.export.choosing.engines import plan_engines
    from flawline.export.choosing.store import Store
    from flawline.export.choosing.table import json_of, text_of
    from flawline.train.data.images import TRAIN_WITH_BITS
    from flawline.train.method import require_positive

    require_positive("budget-ms", args.budget_ms)
    require_positive("minutes", args.minutes)
    request = Request(
        data=args.data,
        methods=method_names(args.methods),
        backbones=backbone_names(args.backbones),
        weights=args.weights,
        seed=args.seed,
        bit_depth=args.bits,
        excluded=excluded_of(args, args.data),
    )
    plan = plan_engines(args.engine, args.precision, args.threads, build_options)
    store = Store(args.out, request, args.threads)
    with bit_depth_remedy(TRAIN_WITH_BITS):
        comparison = compare(request, args.budget_ms, plan, store, args.minutes)
    store.write(".", RESULT, {"rows": json_of(comparison.rows), "left_out": comparison.left_out})
    print(text_of(comparison.rows))
    for name, reason in comparison.left_out.items():
        # Without it, the table looks complete.
        warn(f"left out {name}: {reason}")
    _log_best(comparison, store.bundle, args)


def _log_best(
    comparison: Comparison, bundle_of: Callable[[str], Path], args: argparse.Namespace
) -> None:
    """Print the command that builds the best detector. Raises ExportError if nothing is ranked."""
    best = comparison.best
    if best is None:
        raise ExportError(
            "no detector was ranked; see the lines above, and run the command again with more "
            "--minutes or a larger --budget-ms"
        )
    candidate = comparison.candidates[best.name]
    log(f"trained without a fifth of the good images, it is {bundle_of(best.name)}")
    print(f"build it with all good images: {_build_command(candidate, best, args)}")


def _build_command(candidate: Candidate, best: Row, args: argparse.Namespace) -> str:
    recipe = candidate.recipe
    engine, precision = best.place.split()
    words: list[str | Path] = ["--method", recipe.method, "--data", recipe.data]
    if args.backbones is not None and recipe.settings.backbone in args.backbones:
        words += ["--backbone", recipe.settings.backbone]
    if args.weights is not None and recipe.settings.backbone:
        words += ["--weights", args.weights]
    for flag, value in (("--seed", args.seed), ("--bits", args.bits), ("--threads", args.threads)):
        if value:
            words += [flag, str(value)]
    if args.exclude_images is not None:
        words += [EXCLUSION_FLAG, args.exclude_images]
    return command_line("build", *words, "--engine", engine, "--precision", precision)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, or 2 for a mistake of the user."""
    words = sys.argv[1:] if argv is None else list(argv)
    return run_command(PROGRAM, lambda: _run(words), INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
