"""One training run from images to measured bundle."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flawline.benchmarks.evaluate import evaluate_bundle
from flawline.benchmarks.train_bundle import train_bundle
from flawline.runtime.engines import EngineOptions
from flawline.train import TrainError
from flawline.train.data import data_name


def train_and_measure(data: Path, seed: int, flags: Sequence[str], folder: Path) -> dict[str, Any]:
    """Train, export and measure on one data set; return the row of `evaluate_bundle` for it.

    The row also has the seed and the minutes from images to bundle. `flags` go to `export.build`;
    `folder` holds checkpoint and bundle for the time of the call. Raises TrainError when the build
    ends with an error, which it has reported itself.
    """
    name = data_name(data)
    checkpoint = folder / f"{name}-{seed}.pt"
    bundle = folder / f"{name}-{seed}"
    minutes = train_bundle(data, seed, flags, bundle, checkpoint)
    if minutes is None:
        raise TrainError(f"{name} seed {seed}: no bundle was built; see the message above")
    row = evaluate_bundle(bundle, data, "auto", EngineOptions(), repeats=1)
    # Many seeds would fill the disk.
    shutil.rmtree(bundle)
    checkpoint.unlink()
    return {**row, "seed": seed, "minutes_to_bundle": round(minutes, 1)}
