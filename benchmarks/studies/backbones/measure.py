"""The rows of the study: one per data set, detector, weights and seed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawline.benchmarks.labels import labelled_test_images
from flawline.benchmarks.studies.backbones import NEAREST
from flawline.benchmarks.studies.backbones.nearest import BANK_PATCHES, nearest_auroc
from flawline.benchmarks.studies.results import images_identity, read_rows, write_rows
from flawline.runtime.console import log
from flawline.runtime.environment import versions
from flawline.runtime.json_shapes import Shape
from flawline.train.backbones import create_backbone
from flawline.train.checkpoint import load_checkpoint
from flawline.train.data import data_name, hold_out, open_data
from flawline.train.data.demo import PRODUCTS, write_demo
from flawline.train.judging import evaluate
from flawline.train.metrics import auroc
from flawline.train.progress import Bars, Progress
from flawline.train.recipe import plan
from flawline.train.training import train

# Height and width of the input of every detector.
SIZE = 256
Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """The choices of a comparison.

    `demo` is the folder of the demo data, None to leave it out. `detectors` are NEAREST and names
    of methods; `steps` are the optimiser steps of the methods, None for their defaults.
    """

    data: tuple[Path, ...]
    demo: Path | None
    detectors: tuple[str, ...]
    weights: tuple[str, ...]
    seeds: tuple[int, ...]
    backbone: str
    steps: int | None


ROW: Shape = {
    **dict.fromkeys(("data", "method", "budget", "backbone", "weights", "torch"), str),
    **dict.fromkeys(("good_images", "test_images", "seed"), int),
    "image_auroc": float,
}


@dataclass(frozen=True)
class _Trial:
    """One row to measure: `row` is what is known of it before."""

    row: Row
    data: Path
    weights: str


def measure_comparison(comparison: Comparison, stem: Path) -> list[Row]:
    """Return the rows of a comparison; those that STEM.json has are taken from there.

    STEM.json is written after each row. Its rows of other comparisons stay in it.
    """
    if comparison.demo is not None:
        write_demo(comparison.demo)
    known = read_rows(stem, ROW)
    rows: list[Row] = []
    for trial in _trials(comparison):
        row = _known_row(trial.row, known)
        if row is None:
            row = _measure(trial, comparison)
        rows.append(row)
        # Written after each row, because a whole comparison takes hours.
        others = [row for row in known if row not in rows]
        write_rows(stem, rows + others)
    return rows


def _trials(comparison: Comparison) -> Iterator[_Trial]:
    for data, name in _data_sets(comparison):
        dataset = open_data(data)
        good, _ = hold_out(dataset.train_good)
        identity = images_identity(dataset)
        for detector in comparison.detectors:
            budget = _budget(detector, comparison.steps)
            for weights in comparison.weights:
                for seed in comparison.seeds:
                    row = {
                        "data": name,
                        "good_images": len(good),
                        "test_images": len(dataset.test),
                        **identity,
                        "method": detector,
                        "budget": budget,
                        "backbone": comparison.backbone,
                        "weights": _describe_weights(comparison.backbone, weights, seed),
                        "seed": seed,
                    }
                    yield _Trial(row, data, weights)


def _budget(detector: str, steps: int | None) -> str:
    if detector in UNTRAINED:
        return f"bank of {BANK_PATCHES}"
    return f"{steps or 'default'} steps"


def _data_sets(comparison: Comparison) -> Iterator[tuple[Path, str]]:
    """Yield folder and name of every data set."""
    if comparison.demo is not None:
        for product in PRODUCTS:
            yield comparison.demo / product, f"demo {product}"
    for data in comparison.data:
        of_demo = comparison.demo is not None and data.resolve().parent == comparison.demo.resolve()
        name = data_name(data)
        yield data, f"demo {name}" if of_demo else name


def _describe_weights(backbone: str, weights: str, seed: int) -> str:
    """Name and hash of the weights, without the seed, which has a field of its own."""
    description = create_backbone(backbone, (2, 3)).load(weights, seed)
    return description.replace(f", seed {seed}", "")


def _known_row(wanted: Row, known: Sequence[Row]) -> Row | None:
    """Return the known row that has all values of the wanted one."""
    for row in known:
        if row.items() >= wanted.items():
            return row
    return None


def _measure(trial: _Trial, comparison: Comparison) -> Row:
    row = trial.row
    start = time.monotonic()
    measure = UNTRAINED.get(row["method"], _trained_auroc)
    with Bars() as bars:
        result = measure(trial, comparison, bars)
    minutes = (time.monotonic() - start) / 60
    log(
        f"{row['data']}, {row['method']}, {trial.weights}, seed {row['seed']}: "
        f"image AUROC {result:.4f}"
    )
    return {
        **row,
        "image_auroc": round(result, 4),
        "minutes": round(minutes, 2),
        **versions(),
    }


def _nearest_auroc(trial: _Trial, comparison: Comparison, progress: Progress) -> float:
    """Return the image AUROC of nearest neighbours, over all test images."""
    seed = trial.row["seed"]
    return nearest_auroc(trial.data, comparison.backbone, trial.weights, seed, SIZE, progress)


def _trained_auroc(trial: _Trial, comparison: Comparison, progress: Progress) -> float:
    """Return the image AUROC of a method after its last epoch, over all test images."""
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        recipe = plan(
            trial.row["method"],
            trial.data,
            backbone=comparison.backbone,
            size=SIZE,
            geometry="stretch",
            weights=trial.weights,
            steps=comparison.steps,
            seed=trial.row["seed"],
            device="cpu",
            folds=0,
        )
        checkpoint = load_checkpoint(train(recipe, Path(folder) / "checkpoint.pt"))
    model = checkpoint.method
    images, labels = labelled_test_images(open_data(trial.data), model.geometry)
    scores, _ = evaluate(model, images, progress)
    return auroc(labels, scores)


# Detectors that are not methods; all others are trained.
UNTRAINED: dict[str, Callable[[_Trial, Comparison, Progress], float]] = {NEAREST: _nearest_auroc}
