"""python -m benchmarks.studies.stages: what each step from the published code to an engine brings.

    python -m benchmarks.studies.stages --checkpoint runs/part.pt --bundle bundles/part --data DATA

One trained detector judges the test images in several forms: in PyTorch as the authors' code
computes it, without its unused computation, and rewritten; then the bundle that was built from it,
in every engine and precision of this machine. All forms take turns on each image, and resizing is
a part of every time. The scores give the image AUROC of each form, and the decisions that differ
from those of the first form at the bundle's threshold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from flawline.benchmarks.studies.options import add_out_argument, study_parser
from flawline.benchmarks.studies.results import write_results
from flawline.runtime.command_parser import path_argument
from flawline.runtime.console import run_command
from flawline.runtime.environment import versions


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    return run_command(parser.prog, lambda: _run(_arguments(parser, argv)))


def _parser() -> argparse.ArgumentParser:
    parser = study_parser("stages", __doc__)
    parser.add_argument("--checkpoint", type=path_argument, required=True)
    parser.add_argument("--bundle", type=path_argument, required=True, help="built from it")
    parser.add_argument("--data", type=path_argument, required=True)
    parser.add_argument(
        "--images",
        type=int,
        help="judge so many test images, spread over all; default all",
    )
    parser.add_argument("--threads", type=int, help="CPU threads; default all")
    parser.add_argument("--device", default="auto", help="of PyTorch; default auto, a GPU if any")
    add_out_argument(parser, "stages")
    return parser


def _arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    args = parser.parse_args(argv)
    if args.images is not None and args.images < 2:
        parser.error("--images takes 2 or more")
    if args.threads is not None and args.threads < 1:
        parser.error("--threads takes 1 or more")
    return args


def _run(args: argparse.Namespace) -> None:
    from flawline.benchmarks.studies.network import torch_threads
    from flawline.benchmarks.studies.stages.measure import measure_stages
    from flawline.benchmarks.studies.stages.report import stages_report

    with torch_threads(args.threads):
        result = measure_stages(
            args.checkpoint, args.bundle, args.data, args.images, args.threads, args.device
        )
    page = stages_report(result)
    write_results(args.out, {**result, "versions": versions()}, page)
    print(page)


if __name__ == "__main__":
    sys.exit(main())
