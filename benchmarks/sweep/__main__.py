"""flawline sweep: train and measure methods on data sets, in a folder that every run continues.

Also `python -m benchmarks.sweep`.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # The imports below take a while.
    import_module("flawline.interrupts").end_quietly()

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from flawline.benchmarks.sweep.flags import parse_flags
from flawline.benchmarks.sweep.plan import (
    ALL,
    Plan,
    cells_of,
    choices_of,
    complete,
    precisions_of,
    read_plan,
    write_plan,
)
from flawline.benchmarks.sweep.progress import Rest
from flawline.benchmarks.sweep.store import Store, SweepError, only_one_sweep
from flawline.cameras.listing import count_of
from flawline.commands import program_of
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import log, run_command
from flawline.runtime.cores import allowed_cores
from flawline.runtime.engines import ENGINES, REFERENCE_ENGINE
from flawline.train import METHODS
from flawline.train.backbones import BACKBONES, DEFAULT_BACKBONE
from flawline.train.backbones.facts import IMAGENET, WEIGHT_KINDS
from flawline.train.data.demo import DEMO_PRODUCT

if TYPE_CHECKING:
    from flawline.benchmarks.sweep.training import Submit

EXAMPLES = (
    "flawline sweep --data A B --engines onnxruntime openvino:bf16 openvino:int8 --out sweep",
    "flawline sweep --out sweep                 continue it",
    "flawline sweep --out sweep --seeds 0 1 2   train and measure two more seeds",
    "flawline sweep --out sweep --report-only   write the report again",
)
# The folder that the demo data is written to.
DEMO_FOLDER = Path("demo/data")
# Exit status: a cell has failed; the budget, or no training, left cells out.
SOME_FAILED = 1
SOME_LEFT = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 if every cell is trained and measured."""
    parser = _parser()
    interrupted = "interrupted; the same command continues"
    return run_command(parser.prog, lambda: _run(_arguments(parser, argv)), interrupted)


def _parser() -> Parser:
    parser = Parser(
        prog=program_of("sweep"),
        description="Train methods on data sets and measure the bundles in several engines. Flags "
        "that are left out are those of the run before in the same folder.",
        examples=EXAMPLES,
    )
    _add_plan_arguments(parser)
    parser.add_argument(
        "--out",
        type=path_argument,
        default=Path("sweep"),
        help="folder of everything that the sweep writes; default %(default)s",
    )
    _add_stage_arguments(parser)
    parser.add_argument(
        "--robustness",
        action="store_true",
        help="also judge the test images after changes of light and lens, in the first engine",
    )
    parser.add_argument(
        "--budget-minutes",
        type=float,
        help="begin no cell after so many minutes; those that are left are listed",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        help="trainings at the same time, with one thread each; default: the number of cores",
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="train as tasks of the Ray cluster at this address, auto for the one of this machine; "
        "without an address, start Ray here",
    )
    return parser


def _add_stage_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that leave steps out, of which one can be given."""
    stages = parser.add_mutually_exclusive_group()
    stages.add_argument("--train-only", action="store_true", help="measure nothing")
    stages.add_argument("--measure-only", action="store_true", help="train nothing")
    stages.add_argument(
        "--report-only",
        action="store_true",
        help="write the report of what the folder holds; all other flags but --out are ignored",
    )


def _add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the plan, whose defaults are those of the run before."""
    group = parser.add_argument_group("what is compared")
    group.add_argument("--data", type=path_argument, nargs="+", help="the data sets")
    group.add_argument(
        "--demo",
        action="store_true",
        help=f"also the demo's {DEMO_PRODUCT}, which is written to {DEMO_FOLDER}",
    )
    group.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help=f"{ALL} (the default: each that can be trained with these weights), "
        f"{', '.join(METHODS)}",
    )
    group.add_argument(
        "--backbones",
        nargs="+",
        metavar="BACKBONE",
        help=f"for methods that have one: {', '.join(BACKBONES)}; default {DEFAULT_BACKBONE}",
    )
    group.add_argument(
        "--weights", help=f"{', '.join(WEIGHT_KINDS)} or a FILE of weights; default {IMAGENET}"
    )
    group.add_argument("--seeds", type=int, nargs="+", help="default 0")
    group.add_argument(
        "--flags",
        nargs="+",
        metavar='METHOD="FLAGS"',
        help='flags of flawline build for one method, such as simplenet="--steps 700"',
    )
    group.add_argument(
        "--engines",
        nargs="+",
        metavar="ENGINE",
        help=f"NAME, NAME:PRECISION or NAME:all of {', '.join(ENGINES)}; {ALL}: every usable "
        f"engine in every precision; default {REFERENCE_ENGINE}",
    )
    group.add_argument(
        "--threads",
        type=int,
        help="threads of a CPU engine; default: the cores that this process may use",
    )


def _arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    args = parser.parse_args(argv)
    if args.jobs is not None and args.jobs < 1:
        parser.error("--jobs takes 1 or more")
    if args.budget_minutes is not None and not args.budget_minutes > 0:
        parser.error("--budget-minutes takes more than 0")
    return args


def _run(args: argparse.Namespace) -> int:
    # Imported before the work begins, so that a missing package is reported at once.
    from flawline.benchmarks.sweep.measuring import measure_cells
    from flawline.benchmarks.sweep.training import train_cells

    store = Store(args.out.resolve())
    if args.report_only:
        _require_folder(store)
        with only_one_sweep(store):
            _write_report(store)
        return 0
    deadline = None
    if args.budget_minutes is not None:
        deadline = time.time() + 60 * args.budget_minutes
    rest = Rest()
    with only_one_sweep(store) as lock:
        plan = _plan(args, read_plan(store))
        cells = cells_of(plan)
        # A plan with an unsuitable data set would also be that of the next run.
        for cell in cells:
            cell.identity()
        write_plan(store, plan, cells)
        log(f"{count_of(len(cells), 'cell')} in {args.out}")
        if not args.measure_only:
            with _submitting(store, args, lock) as submit:
                train_cells(store, cells, precisions_of(plan), submit, deadline, rest)
        if not args.train_only:
            choices = choices_of(plan)
            measure_cells(store, cells, choices, deadline, rest, args.robustness)
            if any(store.root.glob("measured/*.json")):
                _write_report(store)
    return _report(rest)


def _require_folder(store: Store) -> None:
    """Raise SweepError for a folder that is no sweep's, before anything is written into it."""
    if not (store.root / "measured").is_dir():
        raise SweepError(f"--out {store.root} is no folder of a sweep; run flawline sweep first")


def _write_report(store: Store) -> None:
    """Write the report of everything that the folder holds. Raises SweepError for no result."""
    from flawline.benchmarks.sweep.report.page import write_report

    for path in write_report(store.root):
        log(f"wrote {path}")


def _plan(args: argparse.Namespace, before: Plan) -> Plan:
    """Return the plan: what the command line says, and for the rest the plan of the run before."""
    changes: dict[str, Any] = {}
    for name in ("data", "methods", "backbones", "weights", "seeds", "engines", "threads"):
        value = getattr(args, name)
        if value is not None:
            changes[name] = value
    if args.flags is not None:
        changes["flags"] = parse_flags(args.flags)
    for name in ("data", "methods", "backbones", "seeds", "engines"):
        changes[name] = tuple(changes.get(name, getattr(before, name)))
    changes["data"] = tuple(str(path) for path in changes["data"])
    if args.demo:
        changes["data"] += (str(_demo_data()),)
    return complete(replace(before, **changes))


def _demo_data() -> Path:
    """Write the demo data, unless it is there; return the folder of its product."""
    from flawline.train.data.demo import write_demo
    from flawline.train.progress import Bars

    with Bars() as bars:
        write_demo(DEMO_FOLDER, progress=lambda done, total: bars("demo data", done, total))
    return DEMO_FOLDER / DEMO_PRODUCT


def _submitting(
    store: Store, args: argparse.Namespace, lock: IO[bytes]
) -> AbstractContextManager[Submit]:
    """Return how cells are trained: in processes of this machine, or as tasks of Ray."""
    from flawline.benchmarks.sweep.training import local_processes

    jobs = args.jobs or allowed_cores()
    if args.ray is None:
        return local_processes(store, jobs, lock)
    # Imported here, because Ray is an extra.
    from flawline.benchmarks.sweep.ray_cluster import ray_tasks

    return ray_tasks(store, args.ray, jobs)


def _report(rest: Rest) -> int:
    """Log what has failed and what is left, and return the exit status."""
    for name, reason in rest.failed.items():
        log(f"failed: {name}: {reason}")
    if rest.failed:
        log(f"{count_of(len(rest.failed), 'cell')} failed; the same command tries them again")
    if rest.untrained:
        log(f"not trained, and so not measured: {', '.join(rest.untrained)}")
    if rest.left:
        log(f"left by --budget-minutes: {', '.join(rest.left)}; the same command continues")
    if rest.left or rest.untrained:
        return SOME_LEFT
    return SOME_FAILED if rest.failed else 0


if __name__ == "__main__":
    sys.exit(main())
