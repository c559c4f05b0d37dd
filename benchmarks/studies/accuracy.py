"""python -m benchmarks.accuracy: what a method reaches over several seeds. Last epoch, nothing chosen on test images.

    python -m benchmarks.accuracy --data A B --weights FILE --seeds 0 1 2 --out benchmarks/results/simplenet

Trains, exports and measures each (data set, seed) as a user would, and reports mean and spread.
"""

from __future__ import annotations

from flawline.train import require_extra

require_extra("benchmarks.accuracy")

import argparse
import json
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flawline.benchmarks.evaluate import evaluate_bundle
from flawline.cameras import CameraError
from flawline.export import build as export_build
from flawline.runtime.bundle import BundleError
from flawline.runtime.console import log
from flawline.runtime.engines import EngineError, EngineOptions
from flawline.train.data.images import DataError

METRICS = {"image_auroc": "I-AUROC", "image_ap": "I-AP", "pixel_auroc": "P-AUROC", "aupro": "AUPRO"}


def train_and_measure(
    data: Path, seed: int, flags: Sequence[str], folder: Path
) -> dict[str, Any] | None:
    """One row of `benchmarks.evaluate.evaluate_bundle` with seed and minutes; None where training or export said why not."""
    start = time.monotonic()
    checkpoint, bundle = folder / f"{data.name}-{seed}.pt", folder / f"{data.name}-{seed}"
    arguments = ["--data", str(data), "--out", str(bundle), "--seed", str(seed), *flags]
    if export_build.main([*arguments, "--save-checkpoint", str(checkpoint)]):
        return None
    minutes = (time.monotonic() - start) / 60
    row = evaluate_bundle(bundle, data, "auto", EngineOptions(), repeats=1)
    shutil.rmtree(bundle)
    checkpoint.unlink()
    return {**row, "seed": seed, "minutes_to_bundle": round(minutes, 1)}


def markdown(rows: list[dict[str, Any]], command: str) -> str:
    lines = [
        "| data | images | seeds | " + " | ".join(METRICS.values()) + " | minutes |",
        "|---" * 8 + "|",
    ]
    for name in dict.fromkeys(row["data"] for row in rows):
        mine = [row for row in rows if row["data"] == name]
        cells = [_mean_and_spread([row[key] for row in mine]) for key in METRICS]
        minutes = statistics.mean(row["minutes_to_bundle"] for row in mine)
        lines.append(
            f"| {name} | {mine[0]['images']} | {len(mine)} | {' | '.join(cells)} | {minutes:.1f} |"
        )
    first = rows[0]
    said = f"{first['method']}, {first['backbone']}, weights {first['weights']}, input {first['input']}, last epoch"
    return (
        "\n".join(lines)
        + f"\n\n{said}; mean ± standard deviation over seeds; {first['engine']}. `{command}`\n"
    )


def _mean_and_spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    spread = statistics.stdev(known) if len(known) > 1 else 0.0
    return f"{statistics.mean(known):.4f} ± {spread:.4f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Accuracy over seeds. Other flags go to export.build."
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("results/accuracy"), help="without suffix")
    args, flags = parser.parse_known_args(argv)
    rows = []
    try:
        with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
            for data in args.data:
                for seed in args.seeds:
                    if (row := train_and_measure(data, seed, flags, Path(folder))) is None:
                        return 2
                    rows.append(row)
                    args.out.parent.mkdir(parents=True, exist_ok=True)
                    args.out.with_suffix(".json").write_text(
                        json.dumps(rows, indent=2) + "\n"
                    )  # nothing is lost
                    log(f"{data.name} seed {seed}: image AUROC {row['image_auroc']}")
    except (BundleError, EngineError, CameraError, DataError) as error:
        log(f"benchmarks.accuracy: {error}")
        return 2
    # Names instead of paths: where somebody keeps the data is nobody's business.
    words = [
        *(data.name for data in args.data),
        "--seeds",
        *map(str, args.seeds),
        *(Path(f).name for f in flags),
    ]
    table = markdown(rows, f"python -m benchmarks.accuracy --data {shlex.join(words)}")
    args.out.with_suffix(".md").write_text(table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
