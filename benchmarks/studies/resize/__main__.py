"""python -m benchmarks.studies.resize: time of resizing a camera frame on one core.

Compares `runtime.image.prepare` with OpenCV's and PIL's own resizing in alternating turns: median
time, and the mean distance of the result from PIL's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flawline.benchmarks.studies.options import study_parser
from flawline.runtime.console import log, run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = study_parser("resize", __doc__)

    def work() -> None:
        parser.parse_args(argv)
        _run()

    return run_command(parser.prog, work)


def _run() -> None:
    from flawline.benchmarks.studies.resize.measure import PIL, measure_resizing

    rows = measure_resizing(rounds=10)
    reference = rows[-1].name
    if reference != PIL:
        log("PIL is not installed, so its row is missing")
    print("1920x1080 to 256x256, one core, medians of alternating turns;")
    print(f"mean distance in grey levels from {reference}")
    for row in rows:
        ratio = row.ms / rows[0].ms
        print(f"{row.name:<18}{row.ms:7.2f} ms {ratio:6.2f} x {row.distance:7.2f}")


if __name__ == "__main__":
    sys.exit(main())
