"""One training run from images to measured bundle."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flawline.benchmarks.evaluate import evaluate_bundle
from flawline.export import build
from flawline.runtime.engines import EngineOptions
from flawline.train import TrainError


def train_and_measure(data: Path, seed: int, flags: Sequence[str], folder: Path) -> dict[str, Any]:
    """Train, export and measure on one data set; return the row of `evaluate_bundle` for it.

    The row also has the seed and the minutes from images to bundle. `flags` go to `export.build`;
    `folder` holds checkpoint and bundle for the time of the call. Raises TrainError when the build
    ends with an error, which it has reported itself.
    """
    start = time.monotonic()
    checkpoint = folder / f"{data.name}-{seed}.pt"
    bundle = folder / f"{data.name}-{seed}"
    command = ["--data", str(data), "--out", str(bundle), "--seed", str(seed), "--folds", "0"]
    command += flags
    if build.main([*command, "--save-checkpoint", str(checkpoint)]) != 0:
        raise TrainError(f"{data.name} seed {seed}: no bundle was built; see the message above")
    minutes = (time.monotonic() - start) / 60
    row = evaluate_bundle(bundle, data, "auto", EngineOptions(), repeats=1)
    # Many seeds would fill the disk.
    shutil.rmtree(bundle)
    checkpoint.unlink()
    return {**row, "seed": seed, "minutes_to_bundle": round(minutes, 1)}
