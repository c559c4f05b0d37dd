"""python -m benchmarks.demo: every step on built-in data: render, train, export, inspect, measure.

Each step is a command that a user would type; it is printed before it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flawline import FlawlineError
from flawline.benchmarks.run_table import busy_note, false_alarms, missed_defects
from flawline.commands import command_line, program_of
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import log, run_command
from flawline.train.backbones.facts import RANDOM
from flawline.train.data.demo import DEMO_WEIGHTS, PRODUCTS
from flawline.train.fit import DEFAULT_METHOD

EXAMPLES = (
    "flawline demo",
    "flawline demo --products metal --steps 300 --out metal",
)


class StepFailed(FlawlineError):
    """A step of the demo failed; it has already reported the reason."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    return run_command(parser.prog, lambda: _run(parser.parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program_of("demo"),
        description="Train, export and inspect on built-in data.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        default=Path("demo"),
        help="folder of data, bundles and pictures; default %(default)s",
    )
    parser.add_argument(
        "--weights",
        default=DEMO_WEIGHTS,
        help="as for flawline train; default %(default)s: no download",
    )
    parser.add_argument(
        "--steps", type=int, help="optimiser steps per product; default is the method's"
    )
    parser.add_argument(
        "--products",
        nargs="+",
        choices=PRODUCTS,
        default=list(PRODUCTS),
        help="the products to render and learn; default all",
    )
    return parser


def _run(args: argparse.Namespace) -> int:
    # Imported before the first step, so that a missing package is reported at once.
    from flawline.benchmarks.demo_figure import draw_verdicts
    from flawline.benchmarks.figure import write_report

    _render_data(args.out / "data")
    rows = []
    for product in args.products:
        rows.append(_run_product(product, args))
    if args.weights == RANDOM:
        log(f"note: random weights do not find the defects; --weights {DEMO_WEIGHTS} does")
    for row in rows:
        log(_summary(row))
    busy = busy_note(rows)
    if busy is not None:
        log(f"note: {busy}; on an idle machine the FPS are higher")
    paths = [draw_verdicts(args.out, args.products), *write_report(rows, args.out)]
    for path in paths:
        log(f"wrote {path}")
    return 0


def _render_data(folder: Path) -> None:
    from flawline.train.data.demo import write_demo
    from flawline.train.progress import Bars

    with Bars() as bars:
        write_demo(folder, progress=lambda done, total: bars("demo data", done, total))


def _run_product(product: str, args: argparse.Namespace) -> Mapping[str, Any]:
    """Train, export, inspect and measure one product; return the row of its measurement."""
    from flawline.benchmarks.evaluate import evaluate_bundle
    from flawline.export import build
    from flawline.runtime import infer_stream
    from flawline.runtime.engines import EngineOptions

    data = args.out / "data" / product
    bundle = args.out / "bundles" / product
    flags = ["--method", DEFAULT_METHOD, "--data", data, "--out", bundle]
    # Out-of-fold scores give better thresholds from so few images, but take seven trainings.
    flags += ["--weights", args.weights, "--folds", 0]
    if args.steps is not None:
        flags += ["--steps", args.steps]
    _run_step("build", build.main, flags)
    flags = ["--bundle", bundle, "--camera", data / "test"]
    _run_step("stream", infer_stream.main, flags)
    return evaluate_bundle(bundle, data, "auto", EngineOptions(), repeats=1)


def _run_step(
    name: str, command: Callable[[Sequence[str]], int], arguments: Sequence[object]
) -> None:
    """Print a command and run it. Raises StepFailed with its exit code when that is not 0."""
    words = [str(argument) for argument in arguments]
    log("")
    log(f"$ {command_line(name, *words)}")
    code = command(words)
    if code:
        # The command has printed its error.
        raise StepFailed(f"{program_of(name)} failed; see the message above", code)


def _summary(row: Mapping[str, Any]) -> str:
    accuracy = f"image AUROC {row['image_auroc']:.3f}  pixel AUROC {row['pixel_auroc']:.3f}"
    errors = f"false alarms {false_alarms(row)}  missed defects {missed_defects(row)}"
    return f"{row['data']:<10} {accuracy}  {errors}  {row['fps']} FPS"


if __name__ == "__main__":
    sys.exit(main())
