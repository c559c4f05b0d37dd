"""Trains one variant and measures it with banks of several sizes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flawline.benchmarks.labels import labelled_test_images
from flawline.benchmarks.studies.cutswap.variants import CORESETS, Conditions, Variant
from flawline.runtime.environment import cpu_name
from flawline.train.backbones.memory import FeatureMemory
from flawline.train.checkpoint import load_checkpoint
from flawline.train.data import DataSet, hold_out, open_data
from flawline.train.judging import evaluate
from flawline.train.methods.patchcore import PatchCore
from flawline.train.metrics import auroc
from flawline.train.progress import Progress
from flawline.train.recipe import Recipe, plan
from flawline.train.training import train


def recipe_of(variant: Variant, data: Path, seed: int, conditions: Conditions) -> Recipe:
    """Return the recipe of a variant with the largest bank. Raises TrainError."""
    recipe = plan(
        variant.method,
        data,
        size=conditions.size,
        options={**variant.options, "coreset": CORESETS[0]},
        weights=conditions.weights,
        seed=seed,
        device=conditions.device,
        folds=0,
    )
    if recipe.length(1) is None:  # a closed form
        return recipe
    return replace(recipe, steps=conditions.steps)


def measure_variant(
    recipe: Recipe, facts: dict[str, Any], folder: Path, progress: Progress
) -> list[dict[str, Any]]:
    """Train a variant, or continue its training in `folder`, and return a row per coreset.

    facts: begin every row. The smaller coreset is the first part of the larger one, since each row
    is chosen for what the ones before it leave. The scores are those of the literal pipeline, which
    reads the features of every image once. Raises DataError and TrainError.
    """
    start = time.monotonic()
    data_set = open_data(recipe.data)
    path = train(recipe, folder / f"{facts['variant']}.pt", again=True)
    checkpoint = load_checkpoint(path)
    path.unlink()  # the trainings of a whole study would be gigabytes
    minutes = (time.monotonic() - start) / 60
    model = checkpoint.method
    assert isinstance(model, PatchCore)
    model.to(torch.device("cpu"))
    model.backbone.memory = FeatureMemory()
    common = {
        **facts,
        "weights": checkpoint.provenance["weights"],
        "good_images": _trained_on(data_set),
        "minutes": round(minutes, 1),
        "device": cpu_name(),
    }
    return _rows(model, recipe, data_set, common, progress)


def _trained_on(data_set: DataSet) -> int:
    return len(hold_out(data_set.train_good)[0])


def _rows(
    model: PatchCore,
    recipe: Recipe,
    data_set: DataSet,
    common: dict[str, Any],
    progress: Progress,
) -> list[dict[str, Any]]:
    test, labels = labelled_test_images(data_set, model.geometry, recipe.bit_depth)
    rows, columns = model.backbone.grids(*model.settings.size)[0]
    patches = common["good_images"] * rows * columns
    largest = model.bank.vectors
    origin = model.bank.origin
    results = []
    for fraction in CORESETS:
        count = max(1, int(fraction * patches))
        model.bank.fill(largest[:count], origin[:count])
        scores, _ = evaluate(model, test, progress, f"test images, coreset {fraction:g}")
        result = {
            "coreset": fraction,
            "rows": count,
            "image_auroc": round(auroc(labels, scores), 4),
        }
        results.append({**common, "test_images": len(test), **result})
    return results
