"""python -m benchmarks.studies.swap: how a running stream takes another bundle.

    python -m benchmarks.studies.swap --bundle bundles/part --engine openvino --threads 1

`flawline stream` judges a synthetic camera. In turns, nothing happens for some seconds, and then
another bundle is put in the place of its own, by a rename: that bundle with another line in its
provenance and another threshold, so that everything is read, opened and tested again. Measured are
the time from the rename to the first line of a frame that the new bundle has judged, the largest
time between two lines in both cases, and which frames have no line.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from flawline.benchmarks.studies.running_stream import (
    SIZES,
    measure_and_write,
    stream_study_parser,
)
from flawline.benchmarks.studies.swap.report import swap_report
from flawline.benchmarks.studies.swap.stream import Line, Stream
from flawline.runtime.bundle import Bundle, write_bundle
from flawline.runtime.console import log, run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = stream_study_parser("swap", __doc__, "swap")
    parser.add_argument("--fps", type=float, default=30, help="of the camera; default %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=3, help="of a turn without a swap; default %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=20, help="swaps; default %(default)s")
    args = parser.parse_args(argv)
    if args.seconds <= 0 or args.rounds < 1 or args.fps < 1:
        parser.error("--seconds takes more than 0, and --rounds and --fps 1 or more")
    return run_command(parser.prog, lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    def measure(bundle: Bundle) -> dict[str, Any]:
        rows = []
        for width, height in SIZES:
            camera = f"synthetic://?width={width}&height={height}&fps={args.fps:g}"
            row = {"size": f"{width}x{height}", **_measure(bundle, camera, args)}
            rows.append(row)
            log(f"{camera}: {row}")
        return {
            "rows": rows,
            "method": bundle.manifest.method,
            "megabytes": round(1e-6 * bundle.model("fp32").stat().st_size, 1),
            "fps": args.fps,
            "seconds": args.seconds,
            "rounds": args.rounds,
        }

    measure_and_write(args, measure, swap_report)


def _measure(bundle: Bundle, camera: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the times of all swaps of a stream, and of the turns between them."""
    words = ["--camera", camera, "--engine", args.engine, "--precision", args.precision]
    words += ["--accept-size"]
    if args.threads is not None:
        words += ["--threads", str(args.threads)]
    with tempfile.TemporaryDirectory(prefix="flawline-") as name:
        place = Path(name) / "part"
        others = [_variant(bundle, Path(name) / f"variant{number}", number) for number in (0, 1)]
        shutil.copytree(others[1].path, place)
        taken: list[float] = []
        before: list[list[Line]] = []
        around: list[list[Line]] = []
        with Stream(place, words) as stream:
            for number in range(args.rounds):
                before.append(stream.rest(args.seconds))
                lines, moment = stream.swap(others[number % 2], args.seconds)
                taken.append(_first(lines, others[number % 2]).at - moment)
                around.append(lines)
            summary = stream.end()
        lines = stream.lines
    # The first frame has the number 0.
    missing = lines[-1].number + 1 - len(lines)
    return {
        "taken_s": _spread(taken),
        "gap_ms": _spread([1e3 * _gap(turn) for turn in before]),
        "swap_gap_ms": _spread([1e3 * _gap(turn) for turn in around]),
        "frames": len(lines),
        "lost": max(0, missing - summary["dropped"]),
        "dropped": _dropped(before),
        "swap_dropped": _dropped(around),
        "engine": stream.engine,
    }


def _variant(bundle: Bundle, path: Path, number: int) -> Bundle:
    """Write a bundle with another identity and threshold, and the same graphs."""
    provenance = {**bundle.manifest.provenance, "variant": str(number)}
    manifest = dataclasses.replace(bundle.manifest, provenance=provenance)
    threshold = bundle.calibration.threshold + number * bundle.manifest.score.std
    calibration = dataclasses.replace(bundle.calibration, threshold=threshold)
    models = {name: bundle.read_model(name) for name in bundle.precisions}
    return write_bundle(path, manifest, calibration, models, bundle.golden())


def _gap(lines: Sequence[Line]) -> float:
    """Return the largest time between two lines in seconds."""
    return max(later.at - earlier.at for earlier, later in pairwise(lines))


def _dropped(turns: Sequence[Sequence[Line]]) -> int:
    return sum(lines[-1].dropped - lines[0].dropped for lines in turns)


def _first(lines: Sequence[Line], bundle: Bundle) -> Line:
    """Return the first line with the threshold of a bundle."""
    return next(line for line in lines if line.threshold == bundle.calibration.threshold)


def _spread(values: Sequence[float]) -> Mapping[str, float]:
    found = {"median": statistics.median(values), "largest": max(values), "smallest": min(values)}
    return {key: round(value, 4) for key, value in found.items()}


if __name__ == "__main__":
    sys.exit(main())
