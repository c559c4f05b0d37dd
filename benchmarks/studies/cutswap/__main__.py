"""python -m benchmarks.studies.cutswap: what fine-tuning on synthetic anomalies brings.

    python -m benchmarks.studies.cutswap --data A B --weights FILE --out results/cutswap

Compares PatchCore on the untuned backbone with CutPaste and CutSwap, with banks of 0.01 and 0.001
of all patches. Rows that OUT.json has already are not measured again, and a training that was
stopped continues, so the same command may be repeated until everything is measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flawline.benchmarks.studies.cutswap.variants import DEFAULT_VARIANTS, VARIANTS, Conditions
from flawline.benchmarks.studies.options import add_out_argument, study_parser
from flawline.runtime.command_parser import path_argument
from flawline.runtime.console import log, run_command
from flawline.train.backbones.facts import IMAGENET


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    return run_command(parser.prog, lambda: _run(parser.parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = study_parser("cutswap", __doc__)
    parser.add_argument("--data", type=path_argument, nargs="+", required=True)
    parser.add_argument("--weights", default=IMAGENET, help="as for train.fit; default %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=list(DEFAULT_VARIANTS),
        help="what is measured; default %(default)s",
    )
    parser.add_argument("--steps", type=int, help="of fine-tuning; default is the method's")
    parser.add_argument("--size", type=int, default=256, help="of the input in pixels")
    parser.add_argument("--device", default="auto", help="as for train.fit")
    add_out_argument(parser, "cutswap")
    return parser


def _run(args: argparse.Namespace) -> None:
    from flawline.benchmarks.studies.cutswap.report import ROW, comparable, cutswap_report
    from flawline.benchmarks.studies.results import read_rows, write_results
    from flawline.export.provenance import public_command
    from flawline.train.blocks.tuned_patchcore import TunedPatchCore

    steps = args.steps or TunedPatchCore.light_steps
    conditions = Conditions(args.weights, args.size, steps, args.device)
    rows = _measure_missing(args, conditions, read_rows(args.out, ROW))
    words: list[object] = ["--data", *args.data, "--seeds", *args.seeds, "--size", args.size]
    words += ["--weights", args.weights]
    command = public_command("benchmarks.studies.cutswap", words)
    report = cutswap_report(comparable(rows, conditions), command)
    write_results(args.out, rows, report)
    print(report)


def _measure_missing(
    args: argparse.Namespace, conditions: Conditions, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Measure what `rows` lacks, write the file after each variant and return all rows."""
    from flawline.benchmarks.studies.cutswap.measure import measure_variant, recipe_of
    from flawline.benchmarks.studies.cutswap.report import has_row
    from flawline.benchmarks.studies.results import images_identity, write_rows
    from flawline.train.data import data_name, open_data
    from flawline.train.progress import Bars

    folder = args.out.with_name(f"{args.out.name}-trainings")
    images = {data: images_identity(open_data(data)) for data in args.data}
    # A seed of everything first, so that a run that is stopped has compared what it could.
    for seed in args.seeds:
        for data in args.data:
            for name in args.variants:
                recipe = recipe_of(VARIANTS[name], data, seed, conditions)
                facts: dict[str, Any] = {
                    "data": data_name(data),
                    "variant": name,
                    "seed": seed,
                    "steps": recipe.length(1),
                    "input": args.size,
                    "weights_file": Path(args.weights).name,
                }
                if has_row(rows, {**facts, **images[data]}):
                    continue
                # Those of other images.
                rows = [row for row in rows if not has_row([row], facts)]
                with Bars() as bars:
                    rows += measure_variant(recipe, {**facts, **images[data]}, folder, bars)
                write_rows(args.out, rows)
                log(f"{facts['data']} {name} seed {seed}: {rows[-2]['image_auroc']}")
    return rows


if __name__ == "__main__":
    sys.exit(main())
