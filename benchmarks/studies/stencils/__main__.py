"""python -m benchmarks.studies.stencils: exact forms of SimpleNet's patch aggregation, timed.

    python -m benchmarks.studies.stencils --backbone wide_resnet50_2 --size 288

Between the feature map of a level and the hidden layer there is one linear map of 3x3
neighbourhoods. It can be computed as a grouped convolution and a 1x1 convolution; as depthwise
convolutions and a wider 1x1; as a mean along rows, a grouped mix along columns and a 1x1; or as one
dense 3x3. The fused form ships the grouped one. The exit status is 1 when a form is not exact.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from flawline.benchmarks.studies.options import study_parser
from flawline.runtime.console import log, run_command
from flawline.train.backbones import BACKBONES, DEFAULT_BACKBONE


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    return run_command(parser.prog, lambda: _run(parser.parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = study_parser("stencils", __doc__)
    parser.add_argument(
        "--backbone", default=DEFAULT_BACKBONE, help=f"one of {', '.join(BACKBONES)}"
    )
    parser.add_argument(
        "--size", type=int, default=256, help="input height and width; default %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, help="CPU threads; default all")
    return parser


def _run(args: argparse.Namespace) -> int:
    from flawline.benchmarks.studies.stencils.measure import BOUND, SHIPPED, measure_stencils

    inexact = 0
    for level, rows in measure_stencils(args.backbone, args.size, args.rounds, args.threads):
        shipped = next(row.ms for row in rows if row.name == SHIPPED)
        for row in rows:
            print(
                f"layer{level}  {row.name:<30} {row.ms:8.3f} ms {row.ms / shipped:6.2f} x, "
                f"{row.values:,} values, error {row.error:.1e}"
            )
            if not row.error <= BOUND:
                inexact += 1
                log(f"layer{level}  {row.name}: the bound of the error is {BOUND:g}")
    return int(inexact > 0)


if __name__ == "__main__":
    sys.exit(main())
