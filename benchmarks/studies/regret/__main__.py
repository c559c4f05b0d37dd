"""python -m benchmarks.studies.regret: what a choice without test images costs.

    python -m benchmarks.studies.regret --sweep sweep --data elpv_mono mvtec_bottle

The bundles of a sweep are ranked as `flawline choose` ranks, by the criterion in
`export/choosing/rank.py`, which needs held-out good images alone. The regret of a data set is the
image AUROC, on its test images, of the best detector minus that of the chosen one. The reference
engine scores the images. What was scored is kept in SWEEP/regret/, so that a run can be continued.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flawline.benchmarks.studies.options import add_out_argument, study_parser
from flawline.runtime.command_parser import path_argument
from flawline.runtime.console import run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = study_parser("regret", __doc__)
    parser.add_argument(
        "--sweep",
        type=path_argument,
        required=True,
        help="folder of a sweep, with its bundles in trained/ and its rows in measured/",
    )
    parser.add_argument(
        "--data", type=path_argument, nargs="+", required=True, help="the data sets of the sweep"
    )
    parser.add_argument("--threads", type=int, help="threads of the engine; default all cores")
    add_out_argument(parser, "regret")

    def work() -> None:
        args = parser.parse_args(argv)
        from flawline.benchmarks.studies.regret.measure import measure
        from flawline.benchmarks.studies.regret.report import page
        from flawline.benchmarks.studies.results import write_results

        rows = measure(args.sweep, args.data, args.threads)
        text = page(rows)
        write_results(args.out, rows, text)
        print(text)

    return run_command(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
