"""Carries out a recipe: from good images to a checkpoint, resumable at any time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawline.runtime.console import log
from flawline.runtime.image import Image
from flawline.runtime.source_images import SourceSizes
from flawline.runtime.training_length import TrainingLength
from flawline.train import TrainError
from flawline.train.backbones.facts import RANDOM
from flawline.train.checkpoint import load_checkpoint, save_checkpoint
from flawline.train.data import (
    CachedImages,
    PreparedImages,
    describe_images,
    hold_out,
    open_data,
)
from flawline.train.data.split import content_hashes, list_hash
from flawline.train.loop import choose_device
from flawline.train.method import Fit, Method
from flawline.train.progress import Bars, Progress
from flawline.train.recipe import Recipe

# Provenance that a run fills in itself; the rest must be equal to continue an unfinished run.
WEIGHTS_FLAG = "weights_flag"
WEIGHTS = "weights"
# Instead of a number of steps, in the log and the provenance of a method with a closed form.
ONE_PASS = "in one pass"


@dataclass
class _Run:
    """A model on its way from the recipe to the checkpoint; `state` continues an unfinished run."""

    model: Method
    provenance: dict[str, str]
    state: dict[str, Any] | None = None


def train(recipe: Recipe, out: Path) -> Path:
    """Train as the recipe says, write the checkpoint `out` and return its path.

    An unfinished run of the same recipe is continued from NAME.unfinished.pt next to `out`, which
    is removed at the end. Raises TrainError and DataError.
    """
    model = recipe.method_class(recipe.settings)
    data_set = open_data(recipe.data)
    for line in data_set.describe():
        log(line)
    good, held_out = hold_out(data_set.train_good)
    for line in describe_images(good, model.geometry, recipe.bit_depth):
        log(f"note: {line}")
    images = PreparedImages(good, model.geometry, recipe.bit_depth)
    used = model.images_used(recipe.settings, len(good))
    steps = recipe.length(used)
    provenance = _provenance(recipe, good, f"{used} trained on, {len(held_out)} held out", steps)
    if out.is_dir() or not _writable(out.parent):
        raise TrainError(f"--out {out}: cannot be written; choose another")
    trained_on = content_hashes(good)
    unfinished = out.with_name(f"{out.stem}.unfinished.pt")
    run = _begin(recipe, model, images, provenance, unfinished)
    device = choose_device(recipe.device)
    length = ONE_PASS if steps is None else f"for {steps} steps"
    weights = run.provenance[WEIGHTS]
    log(f"training {recipe.method} on {used} good images {length} on {device} (weights {weights})")
    run.model.to(device)
    fit = _fit(run, recipe, images, steps or 1, unfinished)
    if not fit.length.finished:
        run.provenance["steps"] = f"{fit.length.describe()}, cut short"
    save_checkpoint(
        out,
        run.model.cpu(),
        run.provenance,
        trained_on=trained_on,
        length=fit.length,
        missing_phases=fit.missing_phases,
        source_sizes=SourceSizes.of(images.sizes.values()),
    )
    if fit.length.finished:
        unfinished.unlink(missing_ok=True)
    else:
        log(f"stopped by --max-minutes after {fit.length.describe()}; run the same command again")
    log(f"checkpoint {out}")
    return out


@dataclass(frozen=True)
class _FitResult:
    """How far a fit came; `missing_phases` are those that it did not begin."""

    length: TrainingLength
    missing_phases: tuple[str, ...]


def _provenance(
    recipe: Recipe, good: Sequence[Path], counts: str, steps: int | None
) -> dict[str, str]:
    return {
        "data": str(recipe.data.resolve()),
        "good_images": counts,
        "seed": str(recipe.seed),
        "steps": ONE_PASS if steps is None else str(steps),
        "bits": str(recipe.bit_depth or 8),
        "data_sha256": list_hash(good),
    }


def _fit(
    run: _Run, recipe: Recipe, images: PreparedImages, steps: int, unfinished: Path
) -> _FitResult:
    deadline = math.inf
    if recipe.max_minutes is not None:
        deadline = time.monotonic() + 60 * recipe.max_minutes

    def save(state: dict[str, Any]) -> None:
        save_checkpoint(unfinished, run.model, run.provenance, state)

    try:
        with Bars() as bars:
            pixels = _images_to_fit(run.model, recipe, images, bars)
            fit = Fit(pixels, steps, recipe.seed, deadline, bars, save, run.state)
            done = run.model.fit(fit)
    except KeyboardInterrupt:
        # Nothing is saved before the first step, nor by a method that is fitted in one pass.
        if unfinished.exists():
            log(f"the same command continues from {unfinished}")
        else:
            log("no step was saved; the same command begins again")
        raise
    for note in fit.notes:
        log(note)
    return _FitResult(TrainingLength(done, steps), fit.missing(run.model.phases))


def _images_to_fit(
    model: Method, recipe: Recipe, images: PreparedImages, progress: Progress
) -> Sequence[Image]:
    """Return the images from a temporary cache if the method reads all of them in every step."""
    used = model.images_used(recipe.settings, len(images))
    if model.trains_on_pixels and used == len(images):
        return CachedImages(images, progress=progress)
    return images


def _begin(
    recipe: Recipe,
    model: Method,
    images: PreparedImages,
    provenance: dict[str, str],
    unfinished: Path,
) -> _Run:
    """Load weights into a fresh model, or continue the unfinished run of the same recipe."""
    if unfinished.exists():
        return _continue(recipe, provenance, unfinished)
    provenance[WEIGHTS_FLAG] = recipe.weights
    provenance[WEIGHTS] = model.load_weights(recipe.weights, recipe.seed, images)
    if recipe.weights == RANDOM and model.backbones():
        log("note: --weights random: random features, expect results near chance")
    return _Run(model, provenance)


def _continue(recipe: Recipe, provenance: dict[str, str], unfinished: Path) -> _Run:
    saved = load_checkpoint(unfinished)
    expected = {**provenance, WEIGHTS_FLAG: recipe.weights}
    same = saved.method.settings == recipe.settings
    for name, value in expected.items():
        same = same and saved.provenance.get(name) == value
    if not same:
        raise TrainError(
            f"{unfinished} is from a run with other flags; repeat those, or delete it to start "
            "again"
        )
    state = saved.training or {}
    step = (state.get("state") or {}).get("step", 0)
    log(f"continuing {unfinished} at step {step}")
    return _Run(saved.method, saved.provenance, saved.training)


def _writable(folder: Path) -> bool:
    """Whether a file can be created there; asked before hours of training rather than after."""
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)
