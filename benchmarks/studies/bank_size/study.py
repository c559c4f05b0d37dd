"""The whole study: training, measuring, table and figures."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flawline.benchmarks.labels import labelled_test_images
from flawline.benchmarks.studies.bank_size.figures import SCATTERED, draw_selection, draw_sizes
from flawline.benchmarks.studies.bank_size.measure import compare_sizes, random_patches
from flawline.benchmarks.studies.bank_size.report import bank_size_report
from flawline.benchmarks.studies.results import write_results
from flawline.train.checkpoint import load_checkpoint
from flawline.train.data import PreparedImages, data_name, hold_out, open_data
from flawline.train.methods.patchcore import PatchCore
from flawline.train.progress import Bars
from flawline.train.recipe import Recipe
from flawline.train.training import train

# Rows of the coreset that the figure of the selection shows.
SELECTION = 1024


def study_bank_size(recipe: Recipe, sizes: Sequence[int], out: Path) -> str:
    """Train and measure; write OUT.json, OUT.md and two figures; return the page in Markdown.

    `recipe` trains PatchCore with a coreset of the largest of `sizes`. Raises DataError for a data
    set without good and defective test images.
    """
    data_set = open_data(recipe.data)
    geometry = recipe.settings.geometry
    test, labels = labelled_test_images(data_set, geometry, recipe.bit_depth)
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder:
        checkpoint = load_checkpoint(train(replace(recipe, folds=0), Path(folder) / "bank.pt"))
    model = checkpoint.method
    provenance = checkpoint.provenance
    # For the type checker: the recipe is PatchCore's.
    assert isinstance(model, PatchCore)
    bars = Bars()
    # The same images that the coreset was chosen from.
    good_paths, _ = hold_out(data_set.train_good)
    good = PreparedImages(good_paths, model.geometry, recipe.bit_depth)
    random = random_patches(model, good, max(*sizes, SCATTERED), recipe.seed, bars)
    # All test images are read before, so that reading them is not timed.
    rows = compare_sizes(model, sizes, random, list(test), labels, bars)
    for row in rows:
        row["data"] = data_name(recipe.data)
    note = _note(recipe, model, provenance["weights"], len(test))
    page = bank_size_report(rows, f"{note}; {rows[0]['engine']}, batch 1, engine alone.")
    write_results(out, rows, page)
    backbone = model.settings.backbone
    draw_sizes(rows, f"{data_name(recipe.data)}, PatchCore {backbone}, {rows[0]['engine']}", out)
    shown = min(SELECTION, len(model.bank.vectors))
    draw_selection(model, shown, random, good, out.with_name(f"{out.name}-selection"))
    return page


def _note(recipe: Recipe, model: PatchCore, weights: str, test_images: int) -> str:
    settings = model.settings
    return (
        f"PatchCore, {settings.backbone}, {model.dimensions} dimensions, weights {weights}, "
        f"input {model.geometry.width}x{model.geometry.height}, "
        f"{data_name(recipe.data)} ({test_images} test images), seed {recipe.seed}"
    )
