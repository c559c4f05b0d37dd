"""python -m benchmarks.run: speed and accuracy of bundles.

    python -m benchmarks.run --bundles bundles/* --data DATA --engines all --out results

Every test image goes through `Detector`, as the frame of a camera does, `--repeats` times. These
calls give both the scores and the times. Bundles with the same data set, and their engines, take
turns on each image. Decoding the file is not timed, because a camera delivers pixels. The table is
printed and written with the figure and run.json, which holds everything.
"""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # The imports below take a while.
    import_module("flawline.interrupts").end_quietly()

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flawline.benchmarks.run_table import run_table
from flawline.cameras.bit_depth import bit_depth_remedy
from flawline.cameras.listing import count_of
from flawline.commands import program_of
from flawline.runtime.bundle import read_bundle
from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import describe_os_error, log, run_command
from flawline.runtime.engines import (
    ENGINES,
    EngineOptions,
    add_server_argument,
    engine_class,
    require_server,
    unusable_here,
)
from flawline.runtime.files import make_writable
from flawline.runtime.precisions import PRECISIONS
from flawline.runtime.signals import DelayedSignals

if TYPE_CHECKING:
    from flawline.benchmarks.evaluate import Row
    from flawline.benchmarks.interleaved import EngineChoice

EXAMPLES = (
    "flawline bench --bundles bundles/part --data /data/part",
    "flawline bench --bundles bundles/* --data /data/part --engines all --out results",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    return run_command(parser.prog, lambda: _run(_arguments(parser, argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program_of("bench"), description="Speed and accuracy of bundles.", examples=EXAMPLES
    )
    parser.add_argument(
        "--bundles", type=path_argument, nargs="+", required=True, help="the bundles to measure"
    )
    parser.add_argument(
        "--data",
        type=path_argument,
        nargs="+",
        required=True,
        help="one data set for all bundles, or one each",
    )
    parser.add_argument(
        "--engines",
        "--engine",
        nargs="+",
        default=["auto"],
        help=f"auto, {', '.join(ENGINES)}; all: every usable engine, in every precision; "
        "default auto",
    )
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "all", *PRECISIONS),
        help="auto is the default of the engine; all: each that it runs; default %(default)s",
    )
    parser.add_argument(
        "--threads",
        type=int,
        help="threads of a CPU engine; default: the cores that this process may use",
    )
    add_server_argument(parser)
    _add_throughput_arguments(parser)
    parser.add_argument(
        "--repeats", type=int, default=3, help="timed passes over each image; default %(default)s"
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        default=Path("results"),
        help="folder of run.md, run.json and the figure; default %(default)s",
    )
    return parser


def _add_throughput_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--streams",
        type=int,
        metavar="N",
        help="measure throughput mode, too: the engine computes N images at the same time, and "
        "each takes longer; the time is that of all images divided by their number",
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="measure throughput mode, too: N images in one call of the engine; with --streams, "
        "that many in each stream",
    )


def _arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    args = parser.parse_args(argv)
    if len(args.data) not in (1, len(args.bundles)):
        parser.error(f"--data takes 1 or {len(args.bundles)} data sets, one per bundle")
    if args.repeats < 1:
        parser.error("--repeats takes 1 or more")
    if args.batch is not None and args.batch < 1:
        parser.error("--batch takes 1 or more")
    return args


def _run(args: argparse.Namespace) -> int:
    # Imported before anything is measured, so that a missing package is reported at once.
    import flawline.benchmarks.figure  # noqa: F401
    from flawline.benchmarks.evaluate import evaluate_bundles
    from flawline.train.data.images import TRAIN_WITH_BITS

    choices = with_throughput(
        choose_engines(args.engines, args.precision, args.threads, args.server),
        args.streams,
        args.batch,
    )
    # Before minutes of measuring.
    make_writable(args.out)
    for bundle in args.bundles:
        read_bundle(bundle)
    # An engine that the user named must work; of all engines, those that do not are left out.
    skip_unavailable = "all" in args.engines or args.precision == "all"
    rows: list[Row] = []
    try:
        for data, bundles in _bundles_by_data(args).items():
            with bit_depth_remedy(TRAIN_WITH_BITS):
                rows += evaluate_bundles(bundles, data, choices, args.repeats, skip_unavailable)
    except BaseException:
        # The data sets before the one that failed, or before Ctrl-C, were measured for minutes.
        if rows:
            _report_interrupted(rows, args.out)
        raise
    _report(rows, args.out)
    return 0


def _bundles_by_data(args: argparse.Namespace) -> dict[Path, list[Path]]:
    """Return the bundles of each data set, which take turns."""
    data_sets = args.data
    if len(data_sets) == 1:
        data_sets = data_sets * len(args.bundles)
    bundles: dict[Path, list[Path]] = {}
    for bundle, data in zip(args.bundles, data_sets, strict=True):
        bundles.setdefault(data, []).append(bundle)
    return bundles


def _report_interrupted(rows: list[Row], out: Path) -> None:
    """Report what was measured before an error, which must reach the user whatever happens here."""
    log(f"the measurement ended early; the results of {count_of(len(rows), 'row')} are reported")
    try:
        _report(rows, out)
    except OSError as error:
        log(describe_os_error(error))


def _report(rows: list[Row], out: Path) -> None:
    """Write the report and print the table; signals wait until both are done.

    Raises OSError where one of the two failed, after the other was done.
    """
    from flawline.benchmarks.figure import write_report

    with DelayedSignals():
        failure = None
        try:
            for path in write_report(rows, out):
                log(f"wrote {path}")
        except OSError as error:
            # The measurement is printed all the same.
            failure = error
        print(run_table(rows), end="", flush=True)
        if failure is not None:
            raise failure


def choose_engines(
    engines: Sequence[str], precision: str, threads: int | None, server: str | None = None
) -> list[EngineChoice]:
    """Return the engines and precisions that `--engines` and `--precision` ask for.

    The engine `all` means every engine of this machine and, when no precision is given, every
    precision that it runs. The precision `all` means every precision of the engines. `server` is
    for those engines that compute on one. Raises EngineError if none of them does.
    """
    from flawline.benchmarks.interleaved import EngineChoice

    options = EngineOptions(threads, precision)
    names = list(engines)
    every_precision = precision == "all"
    if "all" in engines:
        usable = [name for name in ENGINES if unusable_here(name) is None]
        names = [*usable, *(name for name in engines if name not in ("all", *usable))]
        every_precision = precision in ("all", "auto")
    with_server = [name for name in names if name in ENGINES and engine_class(name).needs_server]
    choices = []
    for name in names:
        chosen = options
        if name in with_server or not with_server:
            chosen = replace(options, server=server)
        require_server(name, chosen)
        if every_precision:
            for each in _precisions(name):
                choices.append(EngineChoice(name, replace(chosen, precision=each)))
        else:
            choices.append(EngineChoice(name, chosen))
    return choices


def with_throughput(
    choices: Sequence[EngineChoice], streams: int | None, batch: int | None
) -> list[EngineChoice]:
    """Return each choice, followed by the same in throughput mode if `--streams` or `--batch` is.

    Raises EngineError for a wrong number of streams.
    """
    found = []
    for choice in choices:
        found.append(choice)
        if streams is not None or batch is not None:
            options = replace(choice.options, streams=streams)
            found.append(choice._replace(options=options, batch=batch or 1))
    return found


def _precisions(engine: str) -> Sequence[str]:
    """Return the precisions that an engine runs; for `auto` and unknown names, its own choice."""
    if engine not in ENGINES:
        return ("auto",)
    return engine_class(engine).precisions


if __name__ == "__main__":
    sys.exit(main())
