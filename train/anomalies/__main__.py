"""python -m train.anomalies: draw the synthetic anomalies that a method trains with.

python -m train.anomalies --data /data/bottle --out samples.png
python -m train.anomalies --method METHOD --help      lists the flags of one method
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flawline.runtime.command_parser import Parser, path_argument
from flawline.runtime.console import log, run_command
from flawline.train import METHODS, TrainError
from flawline.train.anomalies import StagedAnomalies, SyntheticAnomalies
from flawline.train.fit import given_options, parse_arguments

MAX_COUNT = 100
SIZES = (32, 2048)  # smallest and largest


def _parser() -> Parser:
    parser = Parser(
        prog="train.anomalies",
        description="Draw the synthetic anomalies that a method trains with.",
    )
    parser.add_argument(
        "--method", help="the method that uses them; may be left out if there is only one"
    )
    parser.add_argument(
        "--data",
        type=path_argument,
        required=True,
        help="MVTec-like folder, or a folder of good images",
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        default=Path("samples.png"),
        help="the PNG to write; default %(default)s",
    )
    parser.add_argument(
        "--count", type=int, default=8, help="number of columns; default %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all random choices; default 0")
    parser.add_argument(
        "--size", type=int, default=256, help="of each image in pixels; default %(default)s"
    )
    parser.add_argument(
        "--bits", type=int, help="significant bits of 16-bit images, such as 12 for a 12-bit camera"
    )
    return parser


def _run(argv: Sequence[str] | None) -> None:
    args = parse_arguments(_parser(), argv, "anomaly_flag", _only_method)
    if not 1 <= args.count <= MAX_COUNT:
        raise TrainError(f"--count {args.count} is not from 1 to {MAX_COUNT}")
    if not SIZES[0] <= args.size <= SIZES[1]:
        raise TrainError(f"--size {args.size} is not from {SIZES[0]} to {SIZES[1]}")
    draw_samples(args)


def _methods() -> list[str]:
    """Return the names of the methods that train with synthetic anomalies."""
    from flawline.train.method import Method, resolve_method

    names = []
    for name in METHODS:
        own = resolve_method(name).anomalies
        if own.__func__ is not Method.anomalies.__func__:  # type: ignore[attr-defined]
            names.append(name)
    return names


def _only_method() -> str:
    names = _methods()
    if len(names) != 1:
        raise TrainError(f"--method is needed: one of {', '.join(names)}")
    return names[0]


def draw_samples(args: argparse.Namespace) -> None:
    """Draw the contact sheet as the parsed flags say. Raises TrainError and DataError."""
    from flawline.train.data import PreparedImages, open_data
    from flawline.train.recipe import plan

    data_set = open_data(args.data)
    for line in data_set.describe():
        log(line)
    paths = data_set.train_good
    recipe = plan(
        args.method,
        args.data,
        size=args.size,
        geometry="stretch",
        options=given_options(args, args.method),
        seed=args.seed,
        bit_depth=args.bits,
    )
    images = PreparedImages(paths, recipe.settings.geometry, args.bits)
    anomalies = recipe.method_class.anomalies(recipe.settings, images, args.seed)
    if anomalies is None:
        raise TrainError(
            f"{args.method} trains without synthetic anomalies; "
            f"choose --method {' or '.join(_methods())}"
        )
    _write_sheet(args, anomalies, [path.stem for path in paths])


def _write_sheet(
    args: argparse.Namespace, anomalies: SyntheticAnomalies, stems: Sequence[str]
) -> None:
    from flawline.train.anomalies.sheet import contact_sheet, stage_sheet, write_png

    samples = []
    columns = []
    names = []
    empty = 0
    for draw in range(args.count):
        sample = anomalies.sample(draw)
        samples.append(sample)
        names.append(" + ".join(stems[index] for index in anomalies.sources(draw)))
        if not sample[2].any():
            empty += 1
        if isinstance(anomalies, StagedAnomalies):
            columns.append(anomalies.stages(draw))
    title = f"{args.method}: {anomalies.description}, seed {args.seed}. Below: the source images"
    sheet = stage_sheet(columns, names, title) if columns else contact_sheet(samples, names, title)
    write_png(args.out, sheet)
    if empty:
        log(f"note: {empty} of {args.count} synthetic anomalies are empty; try other settings")
    log(f"samples {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command("train.anomalies", lambda: _run(argv))


if __name__ == "__main__":
    sys.exit(main())
